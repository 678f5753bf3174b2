"""Video lists in mmaction's format: a path and a class number on each line. Runs on the driver."""

from __future__ import annotations

from collections.abc import Sequence

from tpn_ray.datasets.entries import Annotated, AnnotationFile, Entry, class_names, split_by_name
from tpn_ray.datasets.video_folder import VideoFolder
from tpn_ray.errors import ManifestError


def read(files: Sequence[AnnotationFile], videos: VideoFolder, label_map: Sequence[AnnotationFile]) -> Annotated:
    """Read lines "path number", with paths below the folder of videos; without a label map, numbers are the names."""
    lines = [(file, *_fields(line, file)) for file in files for line in file.text.splitlines() if line.strip()]
    classes = class_names(label_map, ("action",))
    count = max((number for _, _, number in lines), default=-1) + 1
    if classes is None:
        classes = {"action": tuple(str(number) for number in range(count))}
    names = classes["action"]
    if count > len(names):
        raise ManifestError(f"class {count - 1} is in the lists, but the label map has {len(names)} names, from 0")
    entries = [Entry(path, videos.at(path), (names[number],), split_by_name(file.uri)) for file, path, number in lines]
    return Annotated(entries, ("action",), classes)


def _fields(line: str, file: AnnotationFile) -> tuple[str, int]:
    path, _, label = line.strip().rpartition(" ")
    name, _, frames = path.rpartition(" ")
    if not path or not label.isdigit() or (name and frames.isdigit() and "." not in frames):
        raise ManifestError(
            f"{file.uri} has the line {line.strip()!r}; 'path number' was expected (lists of folders of pictures, or of"
            " several classes a video, are not read)"
        )
    return path, int(label)
