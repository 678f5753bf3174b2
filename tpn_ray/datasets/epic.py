"""Annotations of EPIC-KITCHENS-55 and -100: segments of long videos with a verb and a noun. Runs on the driver."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tpn_ray.datasets.entries import Annotated, AnnotationFile, Entry, split_by_name
from tpn_ray.datasets.video_folder import VideoFolder
from tpn_ray.errors import ManifestError

LABEL_SETS = ("verb", "noun")


def read(files: Sequence[AnnotationFile], videos: VideoFolder, label_map: Sequence[AnnotationFile]) -> Annotated:
    """Read the rows of CSVs. `label_map` holds the two published files of class names.

    They are told apart by "verb" and "noun" in their names. Without them, a class is named after the word that its
    narrations use most. Classes keep the published numbers.
    """
    needed = ["video_id", "start_timestamp", "stop_timestamp", "verb_class", "noun_class"]
    rows = [(file, row) for file in files for row in file.table(needed)]
    for file, row in rows:
        for name in LABEL_SETS:
            file.class_number(row, f"{name}_class")
    tables = [row for _, row in rows]
    classes = {name: _from_map(name, label_map) or _from_narrations(name, tables) for name in LABEL_SETS}
    entries = [_entry(row, file, videos, classes) for file, row in rows]
    return Annotated(entries, LABEL_SETS, classes)


def _from_map(name: str, label_map: Sequence[AnnotationFile]) -> tuple[str, ...] | None:
    for file in label_map:
        if name in file.uri.rpartition("/")[2].lower():
            rows = file.table([])
            key = "key" if rows and "key" in rows[0] else "class_key"
            number = next((column for column in (f"{name}_id", "id") if rows and column in rows[0]), None)
            if number is None or key not in rows[0]:
                raise ManifestError(f"{file.uri} has no columns id and key; give the published file of {name} classes")
            return tuple(row[key] for row in sorted(rows, key=lambda row: file.class_number(row, number)))
    return None


def _from_narrations(name: str, rows: Sequence[dict[str, str]]) -> tuple[str, ...]:
    words: dict[int, Counter[str]] = {}
    for row in rows:
        words.setdefault(int(row[f"{name}_class"]), Counter())[row.get(name, "")] += 1
    names: list[str] = []
    for number in range(max(words) + 1 if words else 0):
        counted = sorted(words.get(number, Counter()).items(), key=lambda item: (-item[1], item[0]))
        word = counted[0][0] if counted else ""
        names.append(word if word and word not in names else f"{word or 'class'} ({number})")
    return tuple(names)


def _entry(
    row: dict[str, str], file: AnnotationFile, videos: VideoFolder, classes: dict[str, tuple[str, ...]]
) -> Entry:
    video = row["video_id"]
    id = row.get("narration_id") or f"{video}/{row.get('uid') or row['start_timestamp']}"
    labels = []
    for name in LABEL_SETS:
        number = int(row[f"{name}_class"])
        if number >= len(classes[name]):
            raise ManifestError(f"{file.uri} has {name} class {number} at {id}; the label map has {len(classes[name])}")
        labels.append(classes[name][number])
    span = (seconds(row["start_timestamp"], file), seconds(row["stop_timestamp"], file))
    if not span[0] < span[1]:
        raise ManifestError(
            f"{file.uri} has a segment that ends before it begins: {id}, {span[0]:g} s to {span[1]:g} s"
        )
    uri = videos.find([video]) or videos.at(f"{video}.MP4")
    return Entry(id, uri, tuple(labels), split_by_name(file.uri), span)


def seconds(timestamp: str, file: AnnotationFile) -> float:
    """Convert a timestamp to seconds: "00:01:02.5" is 62.5."""
    try:
        hours, minutes, rest = timestamp.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(rest)
    except ValueError:
        raise ManifestError(f"{file.uri} has the time {timestamp!r}; hours:minutes:seconds were expected") from None
