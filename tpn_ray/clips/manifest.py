"""The list of videos, their labels and their splits, read from folders or a CSV and checked. Runs on the driver.

Three forms are read:
    folder/<class>/<video>                         one sub-folder per class; the split is derived from the names
    folder/{train,val,test}/<class>/<video>        the same, with given splits
    file.csv                                       columns uri,label[,split]; URIs absolute or relative to the CSV
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tpn_ray import storage
from tpn_ray.errors import ConfigError, ManifestError, NotFoundError

SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv", ".gif")
"""Names of videos end so, in any case."""

SPLITS = ("train", "val", "test")
"""The names a split can have."""

DEFAULT_LABEL_SET = "action"
SHOWN = 5


@dataclass(frozen=True, eq=False)
class Manifest:
    """The videos of a dataset. Row i of every field is video i; rows are sorted by id."""

    ids: list[str]
    """A name for each video that stays the same when the dataset moves: its path below the dataset's folder."""

    uris: list[str]
    """Where each video is."""

    labels: NDArray[np.int64]
    """(n videos, s label sets): position of each video's class in each label set."""

    splits: list[str]
    """The split of each video: train, val or test."""

    label_sets: dict[str, tuple[str, ...]]
    """Class names by the name of the label set; the columns of `labels` in order."""

    version: str
    """16 hexadecimal digits that change when a video, its size, label or split changes."""

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, split: str) -> Manifest:
        """The videos of one split. Raises ManifestError where it has none. The version stays the dataset's."""
        rows = [row for row, value in enumerate(self.splits) if value == split]
        if not rows:
            known = ", ".join(sorted(set(self.splits)))
            raise ManifestError(f"the dataset has no videos in split {split!r}; it has {known}")
        return replace(
            self,
            ids=[self.ids[row] for row in rows],
            uris=[self.uris[row] for row in rows],
            labels=self.labels[rows],
            splits=[split] * len(rows),
        )


@dataclass(frozen=True)
class Entry:
    """One video before the checks: what a reader of an annotation format gives."""

    id: str
    uri: str
    labels: tuple[str, ...]
    split: str | None = None


def load_manifest(uri: str, *, val_fraction: float = 0.2) -> Manifest:
    """Read and check the dataset at `uri`. Raises ManifestError or StorageError.

    Without given splits, `val_fraction` of each class goes to "val", chosen by a hash of the id: adding or removing
    videos moves no other one to another split (but in classes of a few videos, see `derive_splits`).
    """
    if not 0 < val_fraction < 1:
        raise ConfigError(f"val_fraction is {val_fraction}; it must be between 0 and 1")
    root = storage.absolute(uri)
    if root.lower().endswith(".csv"):
        entries, sizes = read_csv(root)
    else:
        entries, sizes = read_folder(root)
    return build(entries, sizes, source=root, val_fraction=val_fraction)


# --- readers


def read_folder(root: str) -> tuple[list[Entry], dict[str, int]]:
    """Entries and sizes (bytes by URI) of a folder with one sub-folder per class, perhaps below train/, val/, test/."""
    files = storage.list_files(root)
    videos = {file.uri: file.size_bytes for file in files if _is_video(file.uri)}
    if not videos:
        held = f"holds {len(files)} files and" if files else "is empty: it"
        raise ManifestError(f"{root} {held} has no videos; names of videos end in {' '.join(SUFFIXES)}")
    ids = {uri: uri[len(root) :].lstrip("/") for uri in videos}
    given = {id.partition("/")[0] for id in ids.values()} <= set(SPLITS)
    depth = 1 if given else 0
    entries = []
    for uri, id in ids.items():
        parts = id.split("/")
        if len(parts) < depth + 2:
            form = f"{root}/{parts[0]}/<class>/{parts[-1]}" if given else f"{root}/<class>/{parts[-1]}"
            raise ManifestError(f"{uri} is in no class folder; put it into a folder named as its class: {form}")
        entries.append(Entry(id, uri, (parts[depth],), parts[0] if given else None))
    return entries, videos


def _is_video(uri: str) -> bool:
    """By its name. Hidden files are not: "._clip.mp4" is what macOS leaves beside clip.mp4."""
    return uri.lower().endswith(SUFFIXES) and not storage.name(uri).startswith(".")


def read_csv(uri: str) -> tuple[list[Entry], dict[str, int]]:
    """Entries and sizes of a CSV with the columns uri, label and perhaps split; every named video must be there."""
    text = storage.read_bytes(uri).decode("utf-8-sig", errors="replace")
    table = csv.DictReader(io.StringIO(text))
    columns = [column.strip() for column in table.fieldnames or []]
    table.fieldnames = columns
    missing = [column for column in ("uri", "label") if column not in columns]
    if missing:
        raise ManifestError(
            f"{uri} has no column {' and no column '.join(missing)}; its first line is {','.join(columns)!r},"
            " it must be a header: uri,label or uri,label,split"
        )
    folder = storage.parent(uri)
    entries = [_csv_entry(row, table.line_num, uri, folder) for row in table]
    if not entries:
        raise ManifestError(f"{uri} names no videos: there is nothing below its header")
    return entries, _sizes_of([entry.uri for entry in entries], named_in=uri)


def _csv_entry(row: dict[str, str | None], line: int, source: str, folder: str) -> Entry:
    values = {column: (row.get(column) or "").strip() for column in ("uri", "label", "split")}
    for column in ("uri", "label"):
        if not values[column]:
            raise ManifestError(f"{source} line {line} has no {column}; every line needs uri and label")
    split = values["split"] or None
    if split is not None and split not in SPLITS:
        raise ManifestError(f"{source} line {line} has split {split!r}; known: {', '.join(SPLITS)}")
    named = values["uri"]
    return Entry(named, _resolve(named, folder), (values["label"],), split)


def _resolve(named: str, folder: str) -> str:
    return storage.absolute(named) if storage.is_absolute(named) else storage.absolute(f"{folder}/{named}")


def _sizes_of(uris: Sequence[str], named_in: str) -> dict[str, int]:
    """Size of each named video, by one listing per folder instead of a question per file."""
    wanted, sizes = set(uris), dict[str, int]()
    for folder in _topmost({storage.parent(uri) for uri in uris}):
        try:
            sizes.update({file.uri: file.size_bytes for file in storage.list_files(folder) if file.uri in wanted})
        except NotFoundError:
            continue  # its videos are absent, and named below
    absent = sorted(wanted - sizes.keys())
    if absent:
        raise ManifestError(
            f"{len(absent)} of {len(wanted)} videos named in {named_in} are not in storage: {_some(absent)};"
            " upload them or take their lines out"
        )
    return sizes


def _topmost(folders: Iterable[str]) -> list[str]:
    """The folders that are not inside another one of them."""
    top: list[str] = []
    for folder in sorted(folders, key=lambda folder: folder + "/"):
        if not top or not (folder + "/").startswith(top[-1].rstrip("/") + "/"):
            top.append(folder)
    return top


# --- from entries to a checked manifest


def build(
    entries: Sequence[Entry],
    sizes: dict[str, int],
    *,
    source: str,
    val_fraction: float = 0.2,
    label_sets: tuple[str, ...] = (DEFAULT_LABEL_SET,),
) -> Manifest:
    """Check entries and make the manifest. `sizes`: bytes by URI; `source`: named in messages. Raises ManifestError."""
    _refuse_twice(entries, source)
    entries = sorted(entries, key=lambda entry: entry.id)
    classes = {
        name: tuple(sorted({entry.labels[column] for entry in entries})) for column, name in enumerate(label_sets)
    }
    places = {name: {label: place for place, label in enumerate(names)} for name, names in classes.items()}
    labels = [[places[name][entry.labels[column]] for column, name in enumerate(label_sets)] for entry in entries]
    given = any(entry.split for entry in entries)
    if given and not all(entry.split for entry in entries):
        without = [entry.id for entry in entries if not entry.split]
        raise ManifestError(f"{len(without)} videos in {source} have no split, others do: {_some(without)}")
    splits = [entry.split or "" for entry in entries] if given else derive_splits(entries, val_fraction)
    _refuse_untrained(entries, splits, classes, source)
    content = [[entry.id, sizes[entry.uri], entry.labels, split] for entry, split in zip(entries, splits, strict=True)]
    canonical = json.dumps([list(label_sets), content], ensure_ascii=False, separators=(",", ":"))
    return Manifest(
        ids=[entry.id for entry in entries],
        uris=[entry.uri for entry in entries],
        labels=np.array(labels, dtype=np.int64),
        splits=splits,
        label_sets=classes,
        version=hashlib.sha256(canonical.encode()).hexdigest()[:16],
    )


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


def _refuse_twice(entries: Sequence[Entry], source: str) -> None:
    for what, values in (("video", [entry.uri for entry in entries]), ("id", [entry.id for entry in entries])):
        twice = sorted(value for value, count in Counter(values).items() if count > 1)
        if twice:
            raise ManifestError(
                f"{len(twice)} {what}s stand in {source} more than once: {_some(twice)}; keep one of each"
            )


def _refuse_untrained(
    entries: Sequence[Entry], splits: Sequence[str], classes: dict[str, tuple[str, ...]], source: str
) -> None:
    for column, (name, labels) in enumerate(classes.items()):
        trained = {entry.labels[column] for entry, split in zip(entries, splits, strict=True) if split == "train"}
        untrained = sorted(set(labels) - trained)
        if untrained:
            raise ManifestError(
                f"{len(untrained)} of {len(labels)} classes of {name!r} in {source} have no training video:"
                f" {_some(untrained)}; add some, or check the names of the classes"
            )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
