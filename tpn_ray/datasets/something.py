"""Annotations of Something-Something V1 and V2, whose classes are templates, and of Jester. Runs on the driver.

In Jester, a class stands where V1 has a template. V1 and Jester are published as folders of JPEG pictures: convert them
to videos first, at 12 frames per second.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence

from tpn_ray.datasets.entries import Annotated, AnnotationFile, Entry, class_names, split_by_name
from tpn_ray.datasets.video_folder import VideoFolder
from tpn_ray.errors import ManifestError


def read_v1(files: Sequence[AnnotationFile], videos: VideoFolder, label_map: Sequence[AnnotationFile]) -> Annotated:
    """Read lines "id;template"; the label map has one template per line, in the order of the class numbers."""
    entries = []
    for file in files:
        for row in csv.reader(file.text.splitlines(), delimiter=";"):
            if not row:
                continue
            if len(row) < 2:
                raise ManifestError(
                    f"{file.uri} has no label for {row[0]!r}: published test lists carry none; leave it out"
                )
            entries.append(_entry(row[0].strip(), row[1].strip(), file, videos))
    return Annotated(entries, ("action",), class_names(label_map, ("action",)))


def read_v2(files: Sequence[AnnotationFile], videos: VideoFolder, label_map: Sequence[AnnotationFile]) -> Annotated:
    """Read JSON objects with id and template; the label map goes from template to number."""
    entries = []
    for file in files:
        for video in file.json(list):
            if not isinstance(video, dict) or "id" not in video or not isinstance(video.get("template"), str):
                raise ManifestError(
                    f"{file.uri} has an entry without id or template: {str(video)[:80]};"
                    " published test lists carry no templates; leave them out"
                )
            template = video["template"].replace("[", "").replace("]", "")
            entries.append(_entry(str(video["id"]), template, file, videos))
    classes = None
    if label_map:
        given = {name: str(number) for name, number in label_map[0].json(dict).items()}
        numbers = {name: label_map[0].class_number(given, name) for name in given}
        classes = {"action": tuple(sorted(numbers, key=lambda name: numbers[name]))}
    return Annotated(entries, ("action",), classes)


def _entry(id: str, label: str, file: AnnotationFile, videos: VideoFolder) -> Entry:
    return Entry(id, videos.find([id]) or videos.at(f"{id}.webm"), (label,), split_by_name(file.uri))
