"""Annotations of FineGym: Gym99 or Gym288. Runs on the driver.

Format: gym99_train_element_v1.1.txt, gym99_val_element.txt, gym99_categories.txt, and, for videos that are not cut,
finegym_annotation_info_v1.1.json of sdolivia.github.io/FineGym. An id such as 0LtLS9wROrk_E_002407_002435_A_0003_0005
names a video of YouTube, an event in it, and an element of the event.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tpn_ray.datasets.entries import Annotated, AnnotationFile, Entry, split_by_name
from tpn_ray.datasets.video_folder import VideoFolder
from tpn_ray.errors import ManifestError


def read(files: Sequence[AnnotationFile], videos: VideoFolder, label_map: Sequence[AnnotationFile]) -> Annotated:
    """Read lines "id number", and the times of elements from a JSON file among `files`, if there is one.

    `label_map` has lines "Clabel: number; set: ...; Glabel: ...; (VT) name"; without it, numbers are the names.
    """
    lists = [file for file in files if not file.uri.lower().endswith(".json")]
    times = [file.json(dict) for file in files if file not in lists]
    lines = [(file, *_fields(line, file)) for file in lists for line in file.text.splitlines() if line.strip()]
    count = max((number for _, _, number in lines), default=-1) + 1
    names = _names(label_map[0]) if label_map else tuple(str(number) for number in range(count))
    if count > len(names):
        raise ManifestError(f"class {count - 1} is in the lists, but the label map has {len(names)} names, from 0")
    entries = [
        Entry(id, uri, (names[number],), split_by_name(file.uri), span)
        for file, id, number in lines
        for uri, span in [_place(id, videos, times[0] if times else None, file)]
    ]
    return Annotated(entries, ("action",), {"action": names})


def _fields(line: str, file: AnnotationFile) -> tuple[str, int]:
    id, _, label = line.strip().rpartition(" ")
    if "_E_" not in id or "_A_" not in id or not label.isdecimal():
        raise ManifestError(f"{file.uri} has the line {line.strip()!r}; 'video_E_..._A_... number' was expected")
    return id.strip(), int(label)


def _names(file: AnnotationFile) -> tuple[str, ...]:
    names: dict[int, str] = {}
    for line in file.text.splitlines():
        parts = [part.strip() for part in line.split(";", 3)]
        number = parts[0].removeprefix("Clabel:").strip()
        if line.strip():
            if len(parts) < 4 or not number.isdecimal():
                raise ManifestError(f"{file.uri} has the line {line.strip()!r}; 'Clabel: number; ...' was expected")
            names[int(number)] = parts[3]
    if sorted(names) != list(range(len(names))):
        raise ManifestError(f"{file.uri} does not name each class from 0 to {max(names, default=0)} once")
    return tuple(names[number] for number in range(len(names)))


def _place(
    id: str, videos: VideoFolder, times: dict[str, Any] | None, file: AnnotationFile
) -> tuple[str, tuple[float, float] | None]:
    """Return the video of an element, and the element's span in it unless the video is cut to it already."""
    if cut := videos.find([id]):
        return cut, None
    event, _, _ = id.partition("_A_")
    name, _, event_number = event.partition("_E_")
    within, whole = videos.find([event]), videos.find([name])
    if not within and not whole:
        return videos.at(f"{id}.mp4"), None
    if times is None:
        raise ManifestError(
            f"{within or whole} is a longer video that {id} in {file.uri} is a part of;"
            " add finegym_annotation_info_v1.1.json to --annotations, which tells the times"
        )
    try:
        about = times[name][f"E_{event_number}"]
        spans = about["segments"][id.removeprefix(f"{event}_")]["timestamps"]
        begin, end = float(spans[0][0]), float(spans[-1][1])
        offset = 0.0 if within else float(about["timestamps"][0][0])
    except (KeyError, TypeError, IndexError, ValueError):
        raise ManifestError(f"the JSON file of --annotations has no times for {id} of {file.uri}") from None
    return within or whole or "", (offset + begin, offset + end)
