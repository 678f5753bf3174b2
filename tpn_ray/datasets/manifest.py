"""The list of videos with their labels and splits, read from folders or a CSV and checked. Runs on the driver.

Four forms are supported here; annotations.py reads the formats of published datasets:

    folder/<class>/<video>                         one subfolder per class; the split is derived from the names
    folder/{train,val,test}/<class>/<video>        the same, with given splits
    folder/dataset.json                            a dataset made by jobs/prepare.py
    file.csv                                       columns uri,label[,split]; URIs absolute or relative to the CSV
    file.csv                                       columns uri,labels[,split]: several classes a video, between ";"
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tpn_ray import storage
from tpn_ray.datasets import shards
from tpn_ray.datasets.entries import Entry, derive_splits, refuse_twice, refuse_untrained, some_of
from tpn_ray.datasets.shards import LabelSets
from tpn_ray.datasets.video_lists import read_csv, read_folder
from tpn_ray.errors import ConfigError, ManifestError
from tpn_ray.names import file_name, label_sets_problem, shown

NO_CLASS = ""
"""Class name of a video without a label."""

DEFAULT_LABEL_SET = "action"


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the videos of a prepared dataset are stored. Row i of every array is video i."""

    shard_uris: list[str]
    shards: NDArray[np.int64]
    """(n,): index in `shard_uris`."""
    row_groups: NDArray[np.int64]
    """(n,): row group within the shard; rows of one group are adjacent."""
    offsets: NDArray[np.int64]
    """(n,): first byte of the video within the shard."""
    frame_counts: NDArray[np.int64]
    """(n,): number of frames in the video."""
    hashes: NDArray[np.uint8]
    """(n, 32): SHA-256 of the video."""
    flow: FlowPlacement | None = None
    """Where their optical flow is stored; None if the dataset was prepared without."""

    def select(self, rows: list[int]) -> Placement:
        """Return only these rows."""
        return replace(
            self,
            shards=self.shards[rows],
            row_groups=self.row_groups[rows],
            offsets=self.offsets[rows],
            frame_counts=self.frame_counts[rows],
            hashes=self.hashes[rows],
            flow=self.flow and self.flow.select(rows),
        )


@dataclass(frozen=True, eq=False)
class FlowPlacement:
    """Where the videos of optical flow are stored, in the shards of the others. Row i of every array is video i."""

    offsets: NDArray[np.int64]
    sizes_bytes: NDArray[np.int64]
    hashes: NDArray[np.uint8]

    def select(self, rows: list[int]) -> FlowPlacement:
        """Return only these rows."""
        return FlowPlacement(self.offsets[rows], self.sizes_bytes[rows], self.hashes[rows])


@dataclass(frozen=True, eq=False)
class Manifest:
    """The videos of a dataset. Row i of every field is video i.

    Rows are sorted by id, except in prepared datasets, where they are in stored order, which is random.
    """

    ids: list[str]
    """A name for each video that stays the same when the dataset moves: its path below the dataset's folder."""

    uris: list[str]
    """Location of each video."""

    labels: NDArray[np.int64]
    """(n videos, s label sets): index of each video's class in each label set. With `multi_label`, (n videos, k
    classes): 1 for each class that the video has, and 0 for the others."""

    splits: list[str]
    """The split of each video: train, val, or test."""

    label_sets: dict[str, tuple[str, ...]]
    """Class names by the name of the label set, in the order of the columns of `labels`."""

    version: str
    """Version of 16 hexadecimal digits, which changes when a video, its size, label, or split changes."""

    sizes_bytes: NDArray[np.int64]
    """(n,): size of each file at `uris`, or of the video in its shard if prepared; -1 if there is no file."""

    segments_seconds: NDArray[np.float64] | None = None
    """(n, 2): start and end of each row within its file, NaN for all of it; None if no row is a segment."""

    placement: Placement | None = None
    """Where prepared videos are stored; None for a dataset of video files."""

    multi_label: bool = False
    """Whether a video can have several classes, or none, out of the one label set."""

    def __len__(self) -> int:
        return len(self.ids)

    def classes_of(self, row: int) -> list[str]:
        """Return the names of a video's classes: one for each label set that it has a label of, or all of them."""
        if self.multi_label:
            return [name for name, has in zip(*self.label_sets.values(), self.labels[row] > 0, strict=True) if has]
        sets = zip(self.labels[row].tolist(), self.label_sets.values(), strict=True)
        return [classes[label] for label, classes in sets if label >= 0]

    def select(self, split: str) -> Manifest:
        """Return the videos of one split, keeping the dataset's version. Raises ManifestError if it has none."""
        rows = [row for row, value in enumerate(self.splits) if value == split]
        if not rows:
            known = ", ".join(sorted(set(self.splits)))
            raise ManifestError(f"the dataset has no videos in split {split!r}; it has {known}")
        return self.rows(rows)

    def rows(self, rows: list[int]) -> Manifest:
        """Return only these rows, keeping the dataset's version."""
        return replace(
            self,
            ids=[self.ids[row] for row in rows],
            uris=[self.uris[row] for row in rows],
            labels=self.labels[rows],
            splits=[self.splits[row] for row in rows],
            sizes_bytes=self.sizes_bytes[rows],
            segments_seconds=None if self.segments_seconds is None else self.segments_seconds[rows],
            placement=self.placement and self.placement.select(rows),
        )

    @property
    def has_flow(self) -> bool:
        """Whether optical flow is stored with the videos."""
        return self.placement is not None and self.placement.flow is not None

    def showing(self, modality: str) -> Manifest:
        """Return the manifest whose stored videos are those of a modality: these for rgb, their optical flow for flow.

        Raises ConfigError if there is no flow.
        """
        if modality == "rgb":
            return self
        if self.placement is None or (flow := self.placement.flow) is None:
            raise ConfigError(
                "the recipe needs optical flow (clip.modality flow), which this dataset does not have: prepare it with "
                "`python jobs/prepare.py --flow --data VIDEOS --out FOLDER`, and give that folder"
            )
        counts = self.placement.frame_counts - 1
        shown = replace(self.placement, offsets=flow.offsets, hashes=flow.hashes, frame_counts=counts, flow=None)
        return replace(self, sizes_bytes=flow.sizes_bytes, placement=shown)

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Number of rows in each row group, in order, for `data.plan`; () for a dataset of video files."""
        if self.placement is None:
            return ()
        groups = np.stack([self.placement.shards, self.placement.row_groups])
        begins = np.flatnonzero(np.any(np.diff(groups) != 0, axis=0)) + 1
        return tuple(np.diff([0, *begins.tolist(), len(self)]).tolist())


def load_manifest(uri: str, *, val_fraction: float = 0.2, for_training: bool = True) -> Manifest:
    """Read and check the dataset at `uri`. Raises ManifestError or StorageError.

    Without given splits, `val_fraction` of each class goes to "val", chosen by a hash of the id, so that adding or
    removing videos moves no other video to another split (except in classes of a few videos, see `derive_splits`). If
    it is not `for_training`, classes need no training video and lines of a CSV need no label; a missing label becomes
    -1.
    """
    if not 0 < val_fraction < 1:
        raise ConfigError(f"val_fraction is {val_fraction}; it must be between 0 and 1")
    root = storage.absolute(uri)
    if root.lower().endswith(".csv"):
        entries, sizes, multi_label = read_csv(root, labelled=for_training)
    elif dataset := shards.read_dataset(root):
        return _prepared(root, *dataset)
    else:
        (entries, sizes), multi_label = read_folder(root), False
    return build(
        entries, sizes, source=root, val_fraction=val_fraction, for_training=for_training, multi_label=multi_label
    )


def _prepared(root: str, dataset: dict[str, Any], index: pa.Table) -> Manifest:
    """Build the manifest of a prepared dataset from its dataset.json and its index."""
    ids, names = index["id"].to_pylist(), index["shard"].to_pylist()
    folder = storage.join(root, shards.SHARDS)
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    if why := label_sets_problem(dataset["label_sets"]):
        raise ManifestError(f"{storage.join(root, shards.DATASET)} {why}; it was not written by jobs/prepare.py")
    if foreign := [name for name in places if file_name(name) != name]:
        raise ManifestError(
            f"{storage.join(root, shards.INDEX)} names the shard {shown(foreign[0])}; no shard has such a name"
        )
    whole = {name: tuple(classes) for name, classes in dataset["label_sets"].items()}
    multi_label = bool(dataset.get("multi_label"))
    columns = sum(map(len, whole.values())) if multi_label else len(whole)
    return Manifest(
        ids=ids,
        uris=[f"{folder}/{name}#{id}" for name, id in zip(names, ids, strict=True)],
        labels=np.array(index["labels"].to_pylist(), dtype=np.int64).reshape(len(index), columns),
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
            hashes=_hashes(index["content_sha256"]),
            flow=_flow_placement(index),
        ),
        multi_label=multi_label,
    )


def _flow_placement(index: pa.Table) -> FlowPlacement | None:
    if shards.FLOW_OFFSET not in index.column_names:
        return None
    offsets, sizes = (index[name].to_numpy() for name in (shards.FLOW_OFFSET, shards.FLOW_BYTES))
    return FlowPlacement(offsets, sizes, _hashes(index[shards.FLOW_SHA256]))


def _hashes(column: pa.ChunkedArray) -> NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex("".join(column.to_pylist())), np.uint8).reshape(-1, 32)


# --- from entries to a checked manifest


def build(
    entries: Sequence[Entry],
    sizes: dict[str, int],
    *,
    source: str,
    val_fraction: float = 0.2,
    label_sets: tuple[str, ...] = (DEFAULT_LABEL_SET,),
    classes: LabelSets | None = None,
    for_training: bool = True,
    multi_label: bool = False,
) -> Manifest:
    """Check entries and build the manifest. Raises ManifestError.

    `sizes` maps URIs to bytes, -1 for missing files. `source` is named in messages. `classes` holds class names in the
    order of the dataset's own numbers, possibly including classes without videos; by default they are the sorted names
    that occur.
    """
    if not entries:
        raise ManifestError(f"{source} names no videos")
    refuse_twice(entries, source)
    entries = sorted(entries, key=lambda entry: entry.id)
    given = any(entry.split for entry in entries)
    if given and not all(entry.split for entry in entries):
        without = [entry.id for entry in entries if not entry.split]
        raise ManifestError(f"{len(without)} videos in {source} have no split, others do: {some_of(without)}")
    splits = [entry.split or "" for entry in entries] if given else derive_splits(entries, val_fraction, multi_label)
    if classes is None:
        columns = [slice(None)] if multi_label else [slice(place, place + 1) for place in range(len(label_sets))]
        classes = {
            name: tuple(sorted({label for entry in entries for label in entry.labels[column]} - {NO_CLASS}))
            for name, column in zip(label_sets, columns, strict=True)
        }
        if for_training:
            refuse_untrained(entries, splits, classes, source, multi_label)
    if why := label_sets_problem(classes):
        raise ManifestError(f"{source} {why}; rename it")
    return Manifest(
        ids=[entry.id for entry in entries],
        uris=[entry.uri for entry in entries],
        labels=(_label_marks if multi_label else _label_numbers)(entries, classes, source),
        splits=splits,
        label_sets=classes,
        version=_version(entries, splits, sizes, classes, multi_label),
        sizes_bytes=np.array([sizes[entry.uri] for entry in entries], dtype=np.int64),
        segments_seconds=_segments(entries),
        multi_label=multi_label,
    )


def _label_numbers(entries: Sequence[Entry], classes: LabelSets, source: str) -> NDArray[np.int64]:
    numbers = np.zeros((len(entries), len(classes)), dtype=np.int64)
    for column, (name, names) in enumerate(classes.items()):
        places = {NO_CLASS: -1, **{label: place for place, label in enumerate(names)}}
        _refuse_unknown({entry.labels[column] for entry in entries} - places.keys(), name, source)
        numbers[:, column] = [places[entry.labels[column]] for entry in entries]
    return numbers


def _label_marks(entries: Sequence[Entry], classes: LabelSets, source: str) -> NDArray[np.int64]:
    ((name, names),) = classes.items()
    places = {label: place for place, label in enumerate(names)}
    _refuse_unknown({label for entry in entries for label in entry.labels} - places.keys(), name, source)
    marks = np.zeros((len(entries), len(names)), dtype=np.int64)
    for row, entry in enumerate(entries):
        marks[row, [places[label] for label in entry.labels]] = 1
    if not marks.any():
        raise ManifestError(f"no video in {source} has a class")
    return marks


def _refuse_unknown(unknown: set[str], name: str, source: str) -> None:
    if unknown:
        raise ManifestError(
            f"{len(unknown)} classes of {name!r} in {source} are not in its label map: {some_of(sorted(unknown))};"
            " give the label map of this version of the dataset"
        )


def _version(
    entries: Sequence[Entry], splits: Sequence[str], sizes: dict[str, int], classes: LabelSets, multi_label: bool
) -> str:
    content = [
        [entry.id, sizes[entry.uri], entry.labels, split, *(entry.segment_seconds or ())]
        for entry, split in zip(entries, splits, strict=True)
    ]
    what = [list(classes), content, "multi_label"] if multi_label else [list(classes), content]
    canonical = json.dumps(what, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _segments(entries: Sequence[Entry]) -> NDArray[np.float64] | None:
    if not any(entry.segment_seconds for entry in entries):
        return None
    return np.array([entry.segment_seconds or (np.nan, np.nan) for entry in entries], dtype=np.float64)
