"""Converts published annotations to a manifest. Runs on the driver.

    kinetics       CSV with label, youtube_id, time_start, time_end, and optionally split (400, 600, or 700 classes)
    something-v1   CSV "id;template"; label map: one template per line
    something-v2   JSON with id and template; label map: JSON from template to number
    epic           CSV of EPIC-KITCHENS 55 or 100: segments of long videos, label sets verb and noun
    jester         CSV "id;class"; label map: one class per line
    ucf101         lists "class/video number"; label map: classInd.txt
    hmdb51         lists "video flag", one for each class
    diving48       JSON with vid_name and label; label map: Diving48_vocab.json
    finegym        lists "id number" of Gym99 or Gym288; label map: gym99_categories.txt
    charades       CSV with id and actions: several classes a video; label map: Charades_v1_classes.txt
    mmaction       lists "path number", or "path number number ..." for several classes a video; label map: one name
                   per line

A video that is listed but missing stays in the manifest (`sizes_bytes` is -1) and goes to quarantine: some videos of
Kinetics are always unavailable. Folders and plain CSVs are read by manifest.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tpn_ray import storage
from tpn_ray.datasets import charades, diving48, epic, finegym, kinetics, mmaction, something, ucf_hmdb
from tpn_ray.datasets.entries import Annotated, AnnotationFile, some_of
from tpn_ray.datasets.manifest import Manifest, build
from tpn_ray.datasets.video_folder import VideoFolder
from tpn_ray.datasets.video_lists import SUFFIXES
from tpn_ray.errors import ConfigError, ManifestError
from tpn_ray.names import no_such

Reader = Callable[[Sequence[AnnotationFile], VideoFolder, Sequence[AnnotationFile]], Annotated]
"""(annotations, videos, label maps) -> entries and class names."""

FORMATS: dict[str, Reader] = {
    "kinetics": kinetics.read,
    "something-v1": something.read_v1,
    "something-v2": something.read_v2,
    "epic": epic.read,
    "jester": something.read_v1,
    "ucf101": ucf_hmdb.read_ucf101,
    "hmdb51": ucf_hmdb.read_hmdb51,
    "diving48": diving48.read,
    "finegym": finegym.read,
    "charades": charades.read,
    "mmaction": mmaction.read,
}


def load_annotated(format: str, annotations: Sequence[str], videos: str, label_map: Sequence[str] = ()) -> Manifest:
    """Build the manifest of a published dataset. Raises ConfigError, ManifestError, and StorageError.

    `annotations` and `label_map` are files; `videos` is the folder that holds the videos, at any depth.
    """
    if format not in FORMATS:
        raise ConfigError(no_such("format", format, FORMATS))
    if not annotations or not videos:
        raise ConfigError(f"--format {format} needs --annotations FILE ... and --videos FOLDER")
    files, maps = [_read(uri) for uri in annotations], [_read(uri) for uri in label_map]
    folder = VideoFolder(videos, SUFFIXES)
    found = FORMATS[format](files, folder, maps)
    if not found.entries:
        raise ManifestError(f"{', '.join(file.uri for file in files)} names no video; check --annotations and --format")
    sizes = {entry.uri: folder.sizes.get(entry.uri, -1) for entry in found.entries}
    source = ", ".join(file.uri for file in files)
    absent = sorted(uri for uri, size in sizes.items() if size < 0)
    if len(absent) == len(sizes):
        raise ManifestError(
            f"none of the {len(sizes)} videos named in {source} is below {folder.root}: {some_of(absent)};"
            " check --videos and the names of the files"
        )
    return build(
        found.entries,
        sizes,
        source=source,
        label_sets=found.label_sets,
        classes=found.classes,
        multi_label=found.multi_label,
    )


def _read(uri: str) -> AnnotationFile:
    return AnnotationFile(storage.absolute(uri), storage.read_bytes(uri).decode("utf-8-sig", errors="replace"))
