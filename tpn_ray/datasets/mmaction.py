"""Video lists in mmaction's format: a path and a class number, or several, on each line. Runs on the driver."""

from __future__ import annotations

from collections.abc import Sequence

from tpn_ray.datasets.entries import Annotated, AnnotationFile, Entry, class_names, split_by_name
from tpn_ray.datasets.video_folder import VideoFolder
from tpn_ray.datasets.video_lists import SUFFIXES
from tpn_ray.errors import ManifestError


def read(files: Sequence[AnnotationFile], videos: VideoFolder, label_map: Sequence[AnnotationFile]) -> Annotated:
    """Read lines "path number", with paths below the folder of videos; without a label map, numbers are the names.

    If some line has several numbers, all videos can have several classes.
    """
    lines = [(file, *_fields(line, file)) for file in files for line in file.text.splitlines() if line.strip()]
    classes = class_names(label_map, ("action",))
    count = max((number for *_, numbers in lines for number in numbers), default=-1) + 1
    if classes is None:
        classes = {"action": tuple(str(number) for number in range(count))}
    names = classes["action"]
    if count > len(names):
        raise ManifestError(f"class {count - 1} is in the lists, but the label map has {len(names)} names, from 0")
    entries = [
        Entry(path, videos.at(path), tuple(names[number] for number in numbers), split_by_name(file.uri))
        for file, path, numbers in lines
    ]
    multi_label = any(len(numbers) != 1 for *_, numbers in lines)
    return Annotated(entries, ("action",), classes, multi_label)


def _fields(line: str, file: AnnotationFile) -> tuple[str, list[int]]:
    path, numbers = line.strip(), list[int]()
    while (parts := path.rpartition(" "))[0] and parts[2].isdecimal():
        path, numbers = parts[0].rstrip(), [int(parts[2]), *numbers]
    if not numbers or (len(numbers) > 1 and not path.lower().endswith(SUFFIXES)):
        raise ManifestError(
            f"{file.uri} has the line {line.strip()!r}; 'path number' was expected, or 'video.mp4 number number ...'"
            " for several classes a video (lists of folders of pictures are not read)"
        )
    return path, sorted(set(numbers))
