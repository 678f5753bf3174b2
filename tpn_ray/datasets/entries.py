"""The output of annotation readers: one entry per video or segment, to build a manifest from. Runs on the driver."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tpn_ray.errors import ManifestError

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Recognized names of splits -> the split that they mean."""

SHOWN = 5


@dataclass(frozen=True)
class Entry:
    """One video, or one segment of a longer one."""

    id: str
    """A name that stays the same when the dataset moves."""
    uri: str
    labels: tuple[str, ...]
    """One class name for each label set; where videos have several classes, all of its classes, in any number."""
    split: str | None = None
    """The split; None leaves it to `derive_splits`."""
    segment_seconds: tuple[float, float] | None = None
    """Start and end within the file at `uri`; None means all of it."""


@dataclass(frozen=True)
class Annotated:
    """What a reader of a published format returns."""

    entries: list[Entry]
    label_sets: tuple[str, ...]
    """Names of the label sets, in the order of `Entry.labels`."""
    classes: dict[str, tuple[str, ...]] | None
    """Class names in published order; None means that they are collected and sorted."""
    multi_label: bool = False
    """Whether a video can have several classes, or none."""


@dataclass(frozen=True)
class AnnotationFile:
    """The content of one annotation file."""

    uri: str
    text: str

    def table(self, needed: Sequence[str]) -> list[dict[str, str]]:
        """Parse a CSV into rows by column, stripped. Raises ManifestError if a needed column is missing."""
        table = csv.DictReader(io.StringIO(self.text), skipinitialspace=True)
        table.fieldnames = [column.strip() for column in table.fieldnames or []]
        missing = [column for column in needed if column not in table.fieldnames]
        if missing:
            raise ManifestError(
                f"{self.uri} has no column {' and no column '.join(missing)}; its first line is"
                f" {','.join(table.fieldnames)[:200]!r}; check --format"
            )
        return [{key: (value or "").strip() for key, value in row.items() if isinstance(key, str)} for row in table]

    def json(self, kind: type) -> Any:
        """Parse JSON whose outermost value is of a kind. Raises ManifestError."""
        try:
            value = json.loads(self.text)
        except ValueError as error:
            raise ManifestError(f"{self.uri} is not JSON: {error}") from error
        if not isinstance(value, kind):
            raise ManifestError(f"{self.uri} holds a JSON {type(value).__name__}, a {kind.__name__} was expected")
        return value

    def seconds(self, row: dict[str, str], column: str) -> float:
        """Parse a time in seconds. Raises ManifestError."""
        try:
            value = float(row[column])
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise ManifestError(f"{self.uri} has {column} {row[column]!r} in a row; seconds from 0 were expected")
        return value

    def class_number(self, row: dict[str, str], column: str) -> int:
        """Parse the number of a class. Raises ManifestError."""
        if not row[column].isdecimal():
            raise ManifestError(f"{self.uri} has {column} {row[column]!r} in a row; a whole number from 0 was expected")
        return int(row[column])


def split_called(name: str) -> str | None:
    """Return the split that a name means, ignoring case; None if it is not a known name."""
    return SPLITS.get(name.strip().lower())


def refuse_two_names(names: Iterable[str], where: str) -> None:
    """Raise ManifestError if a split has two names, such as "val" and "validation": they may be two different sets."""
    of_split: dict[str, set[str]] = {}
    for name in names:
        if split := split_called(name):
            of_split.setdefault(split, set()).add(name)
    for split, called in of_split.items():
        if len(called) > 1:
            raise ManifestError(
                f"{where} has {' and '.join(map(repr, sorted(called)))}, which both mean the split {split}; "
                "put them together, or take one out"
            )


def split_by_name(uri: str) -> str:
    """Return the split in a file's name, such as "something-something-v2-validation.json" or "trainlist01.txt".

    Raises ManifestError if the name contains no split or two.
    """
    name = uri.rpartition("/")[2].lower()
    words = re.findall(r"[a-z]+", name.rpartition(".")[0] or name)
    found = {SPLITS[word] for word in words if word in SPLITS}
    found = found or {split for word in words for start, split in SPLITS.items() if word.startswith(start)}
    if len(found) != 1:
        told = f"tells the splits {' and '.join(sorted(found))}" if found else "does not tell its split"
        raise ManifestError(f"{uri} {told}; put one of {', '.join(SPLITS)} into the file's name")
    return found.pop()


def published_split(uri: str) -> str:
    """Return the split in a file's name, "val" for a test list: of datasets with no third list, on which the published
    figures are those of the test list."""
    return "train" if split_by_name(uri) == "train" else "val"


def class_names(files: Sequence[AnnotationFile], label_sets: tuple[str, ...]) -> dict[str, tuple[str, ...]] | None:
    """Parse label maps with one name per line, in the order of the class numbers; None if there are none."""
    if not files:
        return None
    if len(files) != len(label_sets):
        raise ManifestError(
            f"{len(files)} label maps for {len(label_sets)} label set ({', '.join(label_sets)}): "
            f"{some_of([file.uri for file in files])}; give one for each"
        )
    lists = [tuple(line.strip() for line in file.text.splitlines() if line.strip()) for file in files]
    return dict(zip(label_sets, lists, strict=True))


def derive_splits(entries: Sequence[Entry], val_fraction: float, multi_label: bool = False) -> list[str]:
    """Assign "train" or "val" to each entry, by a hash of its id.

    So that no class lacks either by chance, the video of a class with the largest hash is always in "train", and if
    there are two or more, the one with the smallest is in "val". A video of several classes that should be in both is
    in "train".
    """
    places = [_place(entry.id) for entry in entries]
    splits = ["val" if place < val_fraction else "train" for place in places]
    rows_of: dict[object, list[int]] = {}
    for row, entry in enumerate(entries):
        for together in entry.labels if multi_label else [entry.labels]:
            rows_of.setdefault(together, []).append(row)
    ranked = [sorted(rows, key=lambda row: (places[row], entries[row].id)) for rows in rows_of.values()]
    for rows in ranked:
        if len(rows) > 1:
            splits[rows[0]] = "val"
    for rows in ranked:
        splits[rows[-1]] = "train"
    return splits


def _place(id: str) -> float:
    """Map a name to a number in [0, 1) that depends on the name alone, uniformly distributed over names."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") / 2**64


def refuse_twice(entries: Sequence[Entry], source: str) -> None:
    """Raise ManifestError if a video, a segment, or an id occurs more than once."""
    videos = [
        entry.uri if entry.segment_seconds is None else f"{entry.uri} {entry.segment_seconds}" for entry in entries
    ]
    for what, values in (("video", videos), ("id", [entry.id for entry in entries])):
        twice = sorted(value for value, count in Counter(values).items() if count > 1)
        if twice:
            raise ManifestError(
                f"{len(twice)} {what}s occur in {source} more than once: {some_of(twice)}; keep one of each"
            )


def refuse_untrained(
    entries: Sequence[Entry],
    splits: Sequence[str],
    classes: dict[str, tuple[str, ...]],
    source: str,
    multi_label: bool = False,
) -> None:
    """Raise ManifestError if a class has no training video."""
    for column, (name, labels) in enumerate(classes.items()):
        these = slice(None) if multi_label else slice(column, column + 1)
        trained = {
            label
            for entry, split in zip(entries, splits, strict=True)
            if split == "train"
            for label in entry.labels[these]
        }
        untrained = sorted(set(labels) - trained)
        if untrained:
            raise ManifestError(
                f"{len(untrained)} of {len(labels)} classes of {name!r} in {source} have no training video:"
                f" {some_of(untrained)}; add some, or check the names of the classes"
            )


def some_of(names: Sequence[str]) -> str:
    """Format the first names of a long list for a message."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
