"""The list of videos, their labels and their splits, read from folders or a CSV and checked. Runs on the driver.

Four forms are read; annotations.py reads the forms of published datasets:
    folder/<class>/<video>                         one sub-folder per class; the split is derived from the names
    folder/{train,val,test}/<class>/<video>        the same, with given splits
    folder/dataset.json                            a dataset made by jobs/prepare.py
    file.csv                                       columns uri,label[,split]; URIs absolute or relative to the CSV
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tpn_ray import storage
from tpn_ray.clips import shards
from tpn_ray.clips.entries import SPLITS, Entry, derive_splits, refuse_twice, refuse_untrained, some_of
from tpn_ray.clips.shards import LabelSets
from tpn_ray.errors import ConfigError, ManifestError, NotFoundError

SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv", ".gif")
"""Names of videos end so, in any case."""

DEFAULT_LABEL_SET = "action"


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the videos of a prepared dataset lie. Row i of every array is video i."""

    shard_uris: list[str]
    shards: NDArray[np.int64]
    """(n,): place in `shard_uris`."""
    row_groups: NDArray[np.int64]
    """(n,): row group within the shard; rows of one group are neighbours."""
    offsets: NDArray[np.int64]
    """(n,): first byte of the video within the shard."""
    frame_counts: NDArray[np.int64]
    """(n,): frames in the video."""

    def select(self, rows: list[int]) -> Placement:
        """Only these rows."""
        return replace(
            self,
            shards=self.shards[rows],
            row_groups=self.row_groups[rows],
            offsets=self.offsets[rows],
            frame_counts=self.frame_counts[rows],
        )


@dataclass(frozen=True, eq=False)
class Manifest:
    """The videos of a dataset. Row i of every field is video i.

    Rows are sorted by id, those of prepared datasets as they are stored, which is in random order.
    """

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

    sizes_bytes: NDArray[np.int64]
    """(n,): size of each file at `uris`, for prepared videos of the video in its shard; -1 where there is no file."""

    segments_seconds: NDArray[np.float64] | None = None
    """(n, 2): begin and end of each row within its file, NaN for all of it; None where no row is a segment."""

    placement: Placement | None = None
    """Where prepared videos lie; None for a dataset of video files."""

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
            sizes_bytes=self.sizes_bytes[rows],
            segments_seconds=None if self.segments_seconds is None else self.segments_seconds[rows],
            placement=self.placement and self.placement.select(rows),
        )

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Rows in each row group, in order, for `data.plan`; () for a dataset of video files."""
        if self.placement is None:
            return ()
        groups = np.stack([self.placement.shards, self.placement.row_groups])
        begins = np.flatnonzero(np.any(np.diff(groups) != 0, axis=0)) + 1
        return tuple(np.diff([0, *begins.tolist(), len(self)]).tolist())


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
    elif dataset := shards.read_dataset(root):
        return _prepared(root, *dataset)
    else:
        entries, sizes = read_folder(root)
    return build(entries, sizes, source=root, val_fraction=val_fraction)


def _prepared(root: str, dataset: dict[str, Any], index: pa.Table) -> Manifest:
    """The manifest of a prepared dataset from its dataset.json and its index."""
    ids, names = index["id"].to_pylist(), index["shard"].to_pylist()
    folder = storage.join(root, shards.SHARDS)
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    whole = {name: tuple(classes) for name, classes in dataset["label_sets"].items()}
    return Manifest(
        ids=ids,
        uris=[f"{folder}/{name}#{id}" for name, id in zip(names, ids, strict=True)],
        labels=np.array(index["labels"].to_pylist(), dtype=np.int64).reshape(len(index), len(whole)),
        splits=index["split"].to_pylist(),
        label_sets=whole,
        version=dataset["version"],
        sizes_bytes=index["video_bytes"].to_numpy(),
        placement=Placement(
            shard_uris=[f"{folder}/{name}" for name in places],
            shards=np.array([places[name] for name in names], dtype=np.int64),
            row_groups=index["row_group"].to_numpy(),
            offsets=index["offset"].to_numpy(),
            frame_counts=index["frame_count"].to_numpy(),
        ),
    )


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
            f"{len(absent)} of {len(wanted)} videos named in {named_in} are not in storage: {some_of(absent)};"
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
    classes: LabelSets | None = None,
) -> Manifest:
    """Check entries and make the manifest. Raises ManifestError.

    `sizes`: bytes by URI, -1 for what is not there; `source`: named in messages; `classes`: class names in the order of
    the dataset's own numbers, which may include some without videos; by default those that occur, sorted.
    """
    if not entries:
        raise ManifestError(f"{source} names no videos")
    refuse_twice(entries, source)
    entries = sorted(entries, key=lambda entry: entry.id)
    given = any(entry.split for entry in entries)
    if given and not all(entry.split for entry in entries):
        without = [entry.id for entry in entries if not entry.split]
        raise ManifestError(f"{len(without)} videos in {source} have no split, others do: {some_of(without)}")
    splits = [entry.split or "" for entry in entries] if given else derive_splits(entries, val_fraction)
    if classes is None:
        classes = {
            name: tuple(sorted({entry.labels[column] for entry in entries})) for column, name in enumerate(label_sets)
        }
        refuse_untrained(entries, splits, classes, source)
    return Manifest(
        ids=[entry.id for entry in entries],
        uris=[entry.uri for entry in entries],
        labels=_label_numbers(entries, classes, source),
        splits=splits,
        label_sets=classes,
        version=_version(entries, splits, sizes, classes),
        sizes_bytes=np.array([sizes[entry.uri] for entry in entries], dtype=np.int64),
        segments_seconds=_segments(entries),
    )


def _label_numbers(entries: Sequence[Entry], classes: LabelSets, source: str) -> NDArray[np.int64]:
    numbers = np.zeros((len(entries), len(classes)), dtype=np.int64)
    for column, (name, names) in enumerate(classes.items()):
        places = {label: place for place, label in enumerate(names)}
        unknown = sorted({entry.labels[column] for entry in entries} - places.keys())
        if unknown:
            raise ManifestError(
                f"{len(unknown)} classes of {name!r} in {source} are not in its label map: {some_of(unknown)};"
                " give the label map of this version of the dataset"
            )
        numbers[:, column] = [places[entry.labels[column]] for entry in entries]
    return numbers


def _version(entries: Sequence[Entry], splits: Sequence[str], sizes: dict[str, int], classes: LabelSets) -> str:
    content = [
        [entry.id, sizes[entry.uri], entry.labels, split, *(entry.segment_seconds or ())]
        for entry, split in zip(entries, splits, strict=True)
    ]
    canonical = json.dumps([list(classes), content], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _segments(entries: Sequence[Entry]) -> NDArray[np.float64] | None:
    if not any(entry.segment_seconds for entry in entries):
        return None
    return np.array([entry.segment_seconds or (np.nan, np.nan) for entry in entries], dtype=np.float64)
