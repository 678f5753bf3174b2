"""What readers of annotations give: one entry per video or segment, to be made a manifest of. Runs on the driver."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tpn_ray.errors import ManifestError

SPLITS = ("train", "val", "test")
"""The names a split can have."""

SHOWN = 5


@dataclass(frozen=True)
class Entry:
    """One video, or one segment of a longer one."""

    id: str
    """A name that stays the same when the dataset moves."""
    uri: str
    labels: tuple[str, ...]
    """One class name for each label set."""
    split: str | None = None
    """None leaves it to `derive_splits`."""
    segment_seconds: tuple[float, float] | None = None
    """Begin and end within the file at `uri`; None is all of it."""


def derive_splits(entries: Sequence[Entry], val_fraction: float) -> list[str]:
    """For each entry "train" or "val", by a hash of its id.

    So that no class is without either by chance, the video of a class with the largest hash is always in "train", and
    of two or more the one with the smallest in "val".
    """
    places = [_place(entry.id) for entry in entries]
    splits = ["val" if place < val_fraction else "train" for place in places]
    rows_of: dict[tuple[str, ...], list[int]] = {}
    for row, entry in enumerate(entries):
        rows_of.setdefault(entry.labels, []).append(row)
    for rows in rows_of.values():
        ranked = sorted(rows, key=lambda row: (places[row], entries[row].id))
        if len(ranked) > 1:
            splits[ranked[0]] = "val"
        splits[ranked[-1]] = "train"
    return splits


def _place(id: str) -> float:
    """A number in [0, 1) that depends on the name alone, equally spread over names."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") / 2**64


def refuse_twice(entries: Sequence[Entry], source: str) -> None:
    """Raise ManifestError where a video, a segment or an id comes more than once."""
    videos = [
        entry.uri if entry.segment_seconds is None else f"{entry.uri} {entry.segment_seconds}" for entry in entries
    ]
    for what, values in (("video", videos), ("id", [entry.id for entry in entries])):
        twice = sorted(value for value, count in Counter(values).items() if count > 1)
        if twice:
            raise ManifestError(
                f"{len(twice)} {what}s stand in {source} more than once: {some_of(twice)}; keep one of each"
            )


def refuse_untrained(
    entries: Sequence[Entry], splits: Sequence[str], classes: dict[str, tuple[str, ...]], source: str
) -> None:
    """Raise ManifestError where a class has no training video."""
    for column, (name, labels) in enumerate(classes.items()):
        trained = {entry.labels[column] for entry, split in zip(entries, splits, strict=True) if split == "train"}
        untrained = sorted(set(labels) - trained)
        if untrained:
            raise ManifestError(
                f"{len(untrained)} of {len(labels)} classes of {name!r} in {source} have no training video:"
                f" {some_of(untrained)}; add some, or check the names of the classes"
            )


def some_of(names: Sequence[str]) -> str:
    """The first names of a long list, for a message."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
