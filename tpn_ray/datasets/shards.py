"""A prepared dataset: Parquet shards of videos, an index of their rows, and dataset.json. Runs anywhere.

    <dataset>/shards/train-00000.parquet   one row per video, in row groups of some megabytes; bad videos in its footer
    <dataset>/index.parquet                one row per video without the video itself: what training reads at startup
    <dataset>/quarantine.parquet           uri, reason, and message of every video that could not be used
    <dataset>/dataset.json                 class names, counts, splits, settings, version; written last

Videos are stored uncompressed (they are compressed already), so that each is in one piece in its shard. If a dataset
has optical flow, that is a second video in the same row, also in one piece. The index says where: a clip costs one
ranged request for exactly its video, and no footer is read. Any Parquet reader can read the shards too. Bytes are a
pure function of the rows: no dates, one writer version.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tpn_ray import storage
from tpn_ray.errors import ManifestError, NotFoundError
from tpn_ray.sealed import damaged, seal, unseal
from tpn_ray.storage import StoredFile

DATASET, INDEX, QUARANTINE, SHARDS = "dataset.json", "index.parquet", "quarantine.parquet", "shards"
CLAIM = "prepare.json"
"""Name of the file that is written first: the settings that a folder's shards are made with."""

FORMAT = "tpn_ray prepared videos, 1"
ROW_GROUP_BYTES = 8 * 1024**2
"""Size limit of a row group, which is closed before exceeding it; only a single larger video makes a larger group."""

SHARD_REMEDY = "Delete it, and run the jobs/prepare.py command of its dataset again, which rebuilds it"
DATASET_REMEDY = "Run the jobs/prepare.py command of the dataset again, which rebuilds it from its shards"

SUMMARY_KEY = b"tpn_ray.summary"
"""Footer entry of a shard: JSON of its ShardSummary."""

FOOTER_BYTES = 256 * 1024
"""Bytes read from a shard's end at once; a longer footer takes a second request."""

VIDEO = "video"
ROW = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("labels", pa.list_(pa.int64()), nullable=False),
        pa.field("frame_count", pa.int64(), nullable=False),
        pa.field("times_us", pa.list_(pa.int64()), nullable=False),
        pa.field("frames_per_second", pa.float64(), nullable=False),
        pa.field("height", pa.int64(), nullable=False),
        pa.field("width", pa.int64(), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("start_seconds", pa.float64()),
        pa.field("end_seconds", pa.float64()),
        pa.field("content_sha256", pa.string(), nullable=False),
        pa.field(VIDEO, pa.binary(), nullable=False),
    ]
)
"""One video; the segment's bounds are null for a whole file, and times start at 0 with the first frame."""

FLOW, FLOW_SHA256, FLOW_OFFSET, FLOW_BYTES = "flow", "flow_sha256", "flow_offset", "flow_bytes"
ROW_WITH_FLOW = ROW.append(pa.field(FLOW_SHA256, pa.string(), nullable=False)).append(
    pa.field(FLOW, pa.binary(), nullable=False)
)

INDEX_FIELDS = [field for field in ROW if field.name not in (VIDEO, "times_us")]
INDEX_ROW = pa.schema(
    [
        *INDEX_FIELDS,
        pa.field("split", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("row_group", pa.int64(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("video_bytes", pa.int64(), nullable=False),
    ]
)
"""A row of a shard without the video, and the video's location in the shard."""
INDEX_ROW_WITH_FLOW = pa.schema(
    [
        *INDEX_ROW,
        pa.field(FLOW_SHA256, pa.string(), nullable=False),
        pa.field(FLOW_OFFSET, pa.int64(), nullable=False),
        pa.field(FLOW_BYTES, pa.int64(), nullable=False),
    ]
)

QUARANTINE_ROW = pa.schema([("uri", pa.string()), ("reason", pa.string()), ("message", pa.string())])

LabelSets = dict[str, tuple[str, ...]]
"""Class names by the name of the label set."""

Bad = tuple[int, str, str, str]
"""Row of the manifest, uri, reason, message."""


@dataclass(frozen=True, kw_only=True)
class ShardSummary:
    """A finished shard without its videos."""

    job: str
    """Hash of the settings and the source that it was made from."""
    split: str
    index: list[dict[str, Any]]
    """Rows of INDEX_ROW, without the fields that every row of the shard shares."""
    bad: list[Bad]
    """Videos that could not be used."""


# --- one shard


def shard_bytes(rows: Sequence[dict[str, Any]], bad: Sequence[Bad], *, job: str, split: str) -> bytes:
    """Encode a shard of rows (dicts of ROW, or all of ROW_WITH_FLOW). The same rows give the same bytes."""
    buffer = io.BytesIO()
    schema = ROW_WITH_FLOW if rows and FLOW in rows[0] else ROW
    index, searched = list[dict[str, Any]](), 0
    with pq.ParquetWriter(
        buffer,
        schema,
        compression={name: "NONE" if name in (VIDEO, FLOW) else "ZSTD" for name in _column_paths(schema)},
        use_dictionary=False,
        write_statistics=False,
        store_schema=False,
    ) as writer:
        for number, group in enumerate(row_groups(rows)):
            writer.write_table(pa.Table.from_pylist(list(group), schema=schema), row_group_size=len(group))
            written = buffer.getbuffer()
            for row in group:
                offset = _find(written, row[VIDEO], searched)
                searched = offset + len(row[VIDEO])
                index.append(_index_row(row, number, offset))
            for row, entry in zip(group, index[-len(group) :], strict=True):
                if FLOW in row:
                    entry[FLOW_OFFSET] = _find(written, row[FLOW], searched)
                    searched = entry[FLOW_OFFSET] + len(row[FLOW])
            written.release()
        summary = ShardSummary(job=job, split=split, index=index, bad=list(bad))
        writer.add_key_value_metadata({SUMMARY_KEY: seal(dataclasses.asdict(summary), indent=None)})
    return buffer.getvalue()


def _index_row(row: dict[str, Any], row_group: int, offset: int) -> dict[str, Any]:
    kept = {field.name: row.get(field.name) for field in INDEX_FIELDS}
    flow = {FLOW_SHA256: row[FLOW_SHA256], FLOW_BYTES: len(row[FLOW])} if FLOW in row else {}
    return {**kept, "row_group": row_group, "offset": offset, "video_bytes": len(row[VIDEO]), **flow}


def _find(written: memoryview, video: bytes, begin: int) -> int:
    """Return where the plainly encoded column holds the video's bytes, which follow their length."""
    needle = len(video).to_bytes(4, "little") + video[:4096]
    # It closely follows the previous video: only headers and the small columns of the next row group come between.
    for window in (4096 + len(needle), len(written)):
        place = bytes(written[begin : begin + window]).find(needle)
        if place >= 0:
            break
    offset = begin + place + 4
    if place < 0 or written[offset : offset + len(video)] != video:
        raise AssertionError("Parquet did not store a video in one piece")
    return offset


def _column_paths(schema: pa.Schema) -> list[str]:
    """List the column names as Parquet spells them."""
    return [f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name for field in schema]


def row_groups(rows: Sequence[dict[str, Any]]) -> Iterator[Sequence[dict[str, Any]]]:
    """Yield groups of consecutive rows, split before they exceed ROW_GROUP_BYTES of video."""
    begin, held = 0, 0
    for place, row in enumerate(rows):
        size = len(row[VIDEO]) + len(row.get(FLOW, b""))
        if place > begin and held + size > ROW_GROUP_BYTES:
            yield rows[begin:place]
            begin, held = place, 0
        held += size
    if begin < len(rows):
        yield rows[begin:]


def read_summary(shard: StoredFile) -> ShardSummary:
    """Read everything of a shard but its videos, from its footer. Raises DamagedError if that was changed."""
    size = min(FOOTER_BYTES, shard.size_bytes)
    tail = storage.read_range(shard.uri, shard.size_bytes - size, size)
    needed = int.from_bytes(tail[-8:-4], "little") + 8
    if size < needed <= shard.size_bytes:
        tail = storage.read_range(shard.uri, shard.size_bytes - needed, needed)
    try:
        footer = pq.read_metadata(io.BytesIO(tail)).metadata
        fields = unseal(footer[SUMMARY_KEY], shard.uri, SHARD_REMEDY)
        return ShardSummary(**{**fields, "bad": [tuple(bad) for bad in fields["bad"]]})
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:  # OSError: invalid Thrift
        raise damaged(shard.uri, "it is not a whole shard of this version", SHARD_REMEDY) from error


# --- the dataset


def write_dataset(
    folder: str,
    shards: dict[str, ShardSummary],
    label_sets: LabelSets,
    settings: dict[str, Any],
    multi_label: bool = False,
) -> dict[str, Any]:
    """Write index, quarantine, and finally dataset.json for finished shards by name; return dataset.json's content."""
    rows, bad = list[dict[str, Any]](), list[Bad]()
    for name, summary in sorted(shards.items()):
        rows += [{**row, "split": summary.split, "shard": name} for row in summary.index]
        bad += summary.bad
    bad.sort()
    with_flow = any(FLOW_OFFSET in row for row in rows)
    index = table_bytes(pa.Table.from_pylist(rows, schema=INDEX_ROW_WITH_FLOW if with_flow else INDEX_ROW))
    listed = [dict(zip(("uri", "reason", "message"), one[1:], strict=True)) for one in bad]
    quarantine = table_bytes(pa.Table.from_pylist(listed, schema=QUARANTINE_ROW))
    content = [
        [row["id"], row["content_sha256"], row["labels"], row["split"], *([row[FLOW_SHA256]] if with_flow else [])]
        for row in rows
    ]
    what = [label_sets, content, "multi_label"] if multi_label else [label_sets, content]
    canonical = json.dumps(what, ensure_ascii=False, separators=(",", ":"))
    dataset = {
        "format": FORMAT,
        "version": hashlib.sha256(canonical.encode()).hexdigest()[:16],
        "label_sets": {name: list(classes) for name, classes in label_sets.items()},
        **({"multi_label": True} if multi_label else {}),
        "splits": {split: _counts(rows, split) for split in sorted({row["split"] for row in rows})},
        "quarantined": len(bad),
        "settings": settings,
        "index_sha256": hashlib.sha256(index).hexdigest(),
    }
    storage.write_bytes(storage.join(folder, INDEX), index)
    storage.write_bytes(storage.join(folder, QUARANTINE), quarantine)
    storage.write_bytes(storage.join(folder, DATASET), seal(dataset))
    return dataset


def _counts(rows: Sequence[dict[str, Any]], split: str) -> dict[str, int]:
    mine = [row for row in rows if row["split"] == split]
    return {
        "videos": len(mine),
        "frames": sum(row["frame_count"] for row in mine),
        "video_bytes": sum(row["video_bytes"] for row in mine),
        **({FLOW_BYTES: sum(row[FLOW_BYTES] for row in mine)} if any(FLOW_BYTES in row for row in mine) else {}),
        "shards": len({row["shard"] for row in mine}),
    }


def table_bytes(table: pa.Table) -> bytes:
    """Encode a small table as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="ZSTD", store_schema=False)
    return buffer.getvalue()


def read_dataset(folder: str) -> tuple[dict[str, Any], pa.Table] | None:
    """Read dataset.json and the index; None if the folder is not a prepared dataset.

    Raises DamagedError if a file is not what was written, and ManifestError for files of another version or an
    unfinished job.
    """
    uri = storage.join(folder, DATASET)
    try:
        dataset = unseal(storage.read_bytes(uri), uri, DATASET_REMEDY)
    except NotFoundError:
        if storage.exists(storage.join(folder, CLAIM)):
            raise ManifestError(f"{folder} is not finished; run its jobs/prepare.py command again to resume") from None
        return None
    if dataset.get("format") != FORMAT:
        raise ManifestError(
            f"{storage.join(folder, DATASET)} has the format {dataset.get('format')!r}, this version reads {FORMAT!r};"
            " run jobs/prepare.py again"
        )
    if missing := {"version", "label_sets", "index_sha256"} - dataset.keys():
        raise damaged(uri, f"it has no {', '.join(sorted(missing))}", DATASET_REMEDY)
    try:
        index = storage.read_bytes(storage.join(folder, INDEX))
    except NotFoundError as error:
        raise damaged(storage.join(folder, INDEX), "it is missing", DATASET_REMEDY) from error
    if hashlib.sha256(index).hexdigest() != dataset["index_sha256"]:
        raise damaged(storage.join(folder, INDEX), "it does not belong to its dataset.json", DATASET_REMEDY)
    return dataset, pq.read_table(io.BytesIO(index))
