"""Annotations of Something-Something V1 and V2, whose classes are templates. Runs on the driver.

V1 is published as folders of JPEG pictures: convert them to videos first, at 12 frames per second.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from typing import Any

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
        for video in _json(file, list):
            if not isinstance(video, dict) or "id" not in video or not isinstance(video.get("template"), str):
                raise ManifestError(
                    f"{file.uri} has an entry without id or template: {str(video)[:80]};"
                    " published test lists carry no templates; leave them out"
                )
            template = video["template"].replace("[", "").replace("]", "")
            entries.append(_entry(str(video["id"]), template, file, videos))
    classes = None
    if label_map:
        given = {name: str(number) for name, number in _json(label_map[0], dict).items()}
        numbers = {name: label_map[0].class_number(given, name) for name in given}
        classes = {"action": tuple(sorted(numbers, key=lambda name: numbers[name]))}
    return Annotated(entries, ("action",), classes)


def _json(file: AnnotationFile, kind: type) -> Any:
    try:
        value = json.loads(file.text)
    except ValueError as error:
        raise ManifestError(f"{file.uri} is not JSON: {error}") from error
    if not isinstance(value, kind):
        raise ManifestError(f"{file.uri} holds a JSON {type(value).__name__}, a {kind.__name__} was expected")
    return value


def _entry(id: str, label: str, file: AnnotationFile, videos: VideoFolder) -> Entry:
    return Entry(id, videos.find([id]) or videos.at(f"{id}.webm"), (label,), split_by_name(file.uri))
