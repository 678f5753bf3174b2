"""Shards and prepared datasets: the same bytes every time, videos where the index says, torn ones refused."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tpn_ray import storage
from tpn_ray.datasets import reader, shards
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.datasets.shards import ShardSummary, read_summary, row_groups, shard_bytes, write_dataset
from tpn_ray.errors import BadVideo, DamagedError, ManifestError
from tpn_ray.storage import StoredFile

BAD = [(7, "s3://b/bad.mp4", "empty", "the file has no bytes")]


def row(number: int, size: int) -> dict[str, Any]:
    video = np.random.default_rng(number).bytes(size)
    return {
        "id": f"run/{number}.mp4",
        "labels": [number % 2],
        "frame_count": 5 + number,
        "times_us": list(range(0, 40_000 * (5 + number), 40_000)),
        "frames_per_second": 25.0,
        "height": 256,
        "width": 340,
        "source_uri": f"/videos/run/{number}.mp4",
        "start_seconds": None,
        "end_seconds": None,
        "content_sha256": hashlib.sha256(video).hexdigest(),
        "video": video,
    }


def write(folder: Path, name: str, rows: list[dict[str, Any]], split: str) -> ShardSummary:
    data = shard_bytes(rows, BAD if split == "val" else [], job="j", split=split)
    uri = storage.join(str(folder), shards.SHARDS, name)
    storage.write_bytes(uri, data)
    return read_summary(StoredFile(uri, len(data)))


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Some of the rows are larger than a page, and one than a row group."""
    return [row(number, size) for number, size in enumerate([3_000_000] * 5 + [10, 9_000_000, 4000, 4000, 1])]


@pytest.fixture
def dataset(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    written = {
        "train-00000.parquet": write(tmp_path, "train-00000.parquet", rows[:7], "train"),
        "train-00001.parquet": write(tmp_path, "train-00001.parquet", rows[7:9], "train"),
        "val-00000.parquet": write(tmp_path, "val-00000.parquet", rows[9:], "val"),
    }
    write_dataset(str(tmp_path), written, {"action": ("jump", "run")}, {"encode": {"crf": 23}})
    return tmp_path


def test_row_groups(rows: list[dict[str, Any]]) -> None:
    assert [len(group) for group in row_groups(rows)] == [2, 2, 2, 1, 3]
    assert list(row_groups([])) == []


def test_a_shard_is_parquet_that_anyone_reads(rows: list[dict[str, Any]]) -> None:
    data = shard_bytes(rows, BAD, job="j", split="train")
    assert data == shard_bytes(rows, BAD, job="j", split="train")
    assert pq.read_table(io.BytesIO(data)).to_pylist() == rows
    file = pq.ParquetFile(io.BytesIO(data))
    assert [group["video"] for group in file.read_row_group(1, columns=["video"]).to_pylist()] == [
        one["video"] for one in rows[2:4]
    ]


def test_the_summary_of_a_shard(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    summary = write(tmp_path, "val-00000.parquet", rows, "val")
    assert (summary.job, summary.split, summary.bad) == ("j", "val", BAD)
    data = (tmp_path / "shards" / "val-00000.parquet").read_bytes()
    for one, place in zip(rows, summary.index, strict=True):
        assert data[place["offset"] : place["offset"] + place["video_bytes"]] == one["video"]
        assert place["frame_count"] == one["frame_count"]
    assert [place["row_group"] for place in summary.index] == [0, 0, 1, 1, 2, 2, 3, 4, 4, 4]
    empty = write(tmp_path, "empty.parquet", [], "val")
    assert (empty.index, empty.bad) == ([], BAD)


def test_long_footers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "FOOTER_BYTES", 100)
    summary = write(tmp_path, "train-00000.parquet", [row(n, 10) for n in range(50)], "train")
    assert len(summary.index) == 50


def test_flow_is_a_second_video_of_each_row(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    for number, one in enumerate(rows):
        one["flow"] = np.random.default_rng(100 + number).bytes(max(1, len(one["video"]) // 2))
        one["flow_sha256"] = hashlib.sha256(one["flow"]).hexdigest()
    written = {name: write(tmp_path, name, part, name.split("-")[0]) for name, part in
               {"train-00000.parquet": rows[:7], "val-00000.parquet": rows[7:]}.items()}  # fmt: skip
    dataset = write_dataset(str(tmp_path), written, {"action": ("jump", "run")}, {})
    assert dataset["splits"]["val"]["flow_bytes"] == sum(len(one["flow"]) for one in rows[7:])
    manifest = load_manifest(str(tmp_path))
    val, flow = manifest.select("val"), manifest.showing("flow")
    for sample, one in enumerate(rows):
        assert reader.fetch(manifest, sample) == one["video"]
        assert reader.fetch(flow, sample) == one["flow"]
    assert reader.fetch(val.showing("flow"), 2) == rows[9]["flow"]
    assert flow.placement is not None
    assert flow.placement.frame_counts.tolist() == [one["frame_count"] - 1 for one in rows]
    assert (flow.version, flow.group_sizes) == (manifest.version, manifest.group_sizes)
    rows[0]["flow_sha256"] = "0" * 64
    written["train-00000.parquet"] = write(tmp_path, "train-00000.parquet", rows[:7], "train")
    assert write_dataset(str(tmp_path), written, {"action": ("jump", "run")}, {})["version"] != manifest.version
    with pytest.raises(BadVideo, match="are not those that were stored"):
        reader.fetch(load_manifest(str(tmp_path)).showing("flow"), 0)


def test_what_is_no_shard(tmp_path: Path) -> None:
    for content in (b"", b"PAR1", b"x" * 5000):
        (tmp_path / "x.parquet").write_bytes(content)
        with pytest.raises(DamagedError, match=r"it is not a whole shard of this version. Delete it, and run"):
            read_summary(StoredFile(str(tmp_path / "x.parquet"), len(content)))


def test_a_flipped_byte_in_a_footer_is_noticed(tmp_path: Path) -> None:
    """Wherever it is: in Thrift, in the lengths, in the summary. What it does not reach is read as it was written."""
    data = bytearray(shard_bytes([row(n, 10) for n in range(3)], BAD, job="j", split="val"))
    place, begin = tmp_path / "val-00000.parquet", len(data) - int.from_bytes(data[-8:-4], "little") - 8
    place.write_bytes(data)
    whole, noticed = read_summary(StoredFile(str(place), len(data))), 0
    for at in range(begin, len(data), 7):
        data[at] ^= 0xFF
        place.write_bytes(data)
        try:
            assert read_summary(StoredFile(str(place), len(data))) == whole
        except DamagedError as error:
            assert "val-00000.parquet is damaged" in str(error)
            noticed += 1
        data[at] ^= 0xFF
    assert noticed > 100


def test_a_shard_of_an_earlier_version_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = write(tmp_path, "val-00000.parquet", [row(0, 10)], "val")
    with monkeypatch.context() as patch:
        patch.setattr(shards, "seal", lambda content, indent: json.dumps(content))
        assert write(tmp_path, "val-00001.parquet", [row(0, 10)], "val") == new


def test_a_video_whose_bytes_were_changed_is_found_when_it_is_read(dataset: Path) -> None:
    manifest = load_manifest(str(dataset))
    assert manifest.placement is not None
    shard = dataset / "shards" / "train-00000.parquet"
    data = bytearray(shard.read_bytes())
    data[int(manifest.placement.offsets[1]) + 5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(
        BadVideo, match=r"train-00000.parquet are not those that were stored; delete that shard"
    ) as caught:
        reader.fetch(manifest, 1)
    assert caught.value.reason == "damaged"
    assert len(reader.fetch(manifest, 0)) == manifest.sizes_bytes[0]


def test_a_prepared_dataset_is_a_manifest(dataset: Path, rows: list[dict[str, Any]]) -> None:
    manifest = load_manifest(str(dataset))
    assert manifest.ids == [one["id"] for one in rows]
    assert manifest.label_sets == {"action": ("jump", "run")}
    assert manifest.labels[:, 0].tolist() == [number % 2 for number in range(10)]
    assert manifest.splits == ["train"] * 9 + ["val"]
    assert len(set(manifest.uris)) == 10
    assert manifest.placement is not None
    assert manifest.placement.frame_counts.tolist() == [one["frame_count"] for one in rows]
    for sample, one in enumerate(rows):
        assert reader.fetch(manifest, sample) == one["video"]
    train, val = manifest.select("train"), manifest.select("val")
    assert train.group_sizes == (2, 2, 2, 1, 2)
    assert val.group_sizes == (1,)
    assert manifest.group_sizes == (2, 2, 2, 1, 2, 1)
    assert reader.fetch(val, 0) == rows[9]["video"]
    stored = json.loads((dataset / "dataset.json").read_text())
    assert stored["splits"]["train"] == {
        "videos": 9, "frames": sum(5 + n for n in range(9)), "video_bytes": 24_008_010, "shards": 2
    }  # fmt: skip
    assert stored["quarantined"] == 1
    assert manifest.version == stored["version"]
    assert pq.read_table(dataset / "quarantine.parquet").to_pylist() == [
        {"uri": "s3://b/bad.mp4", "reason": "empty", "message": "the file has no bytes"}
    ]


def test_the_version_is_the_content(dataset: Path, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    before = load_manifest(str(dataset)).version
    moved = {"train-00000.parquet": write(tmp_path / "b", "train-00000.parquet", rows, "train")}
    sets = {"action": ("jump", "run")}
    assert write_dataset(str(tmp_path / "b"), moved, sets, {})["version"] != before
    rows[0]["content_sha256"] = "other"
    changed = {"train-00000.parquet": write(tmp_path / "c", "train-00000.parquet", rows, "train")}
    versions = {write_dataset(str(tmp_path / "b"), moved, sets, {"x": 1})["version"] for _ in range(2)}
    assert len(versions) == 1
    assert write_dataset(str(tmp_path / "c"), changed, sets, {})["version"] not in versions


def test_torn_datasets_are_refused(dataset: Path) -> None:
    text = (dataset / "dataset.json").read_text()
    newer = {**json.loads(text), "format": "tpn_ray prepared videos, 99"}
    newer.pop("sha256")
    (dataset / "dataset.json").write_text(json.dumps(newer))
    with pytest.raises(ManifestError, match="has the format 'tpn_ray prepared videos, 99', this version reads"):
        load_manifest(str(dataset))
    for torn in (text[:50], "", "[]", text.replace("jump", "rump"), '{"format": "tpn_ray prepared videos, 1"}'):
        (dataset / "dataset.json").write_text(torn)
        with pytest.raises(DamagedError, match=r"dataset.json is damaged: .*\. Run the jobs/prepare.py command"):
            load_manifest(str(dataset))
    (dataset / "dataset.json").write_text(text)
    (dataset / "index.parquet").write_bytes(b"other")
    with pytest.raises(DamagedError, match="does not belong to its dataset.json"):
        load_manifest(str(dataset))
    (dataset / "index.parquet").unlink()
    with pytest.raises(DamagedError, match="index.parquet is damaged: it is missing"):
        load_manifest(str(dataset))


def test_an_unfinished_dataset_says_so(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / shards.CLAIM), b"{}")
    with pytest.raises(ManifestError, match=r"is not finished; run its jobs/prepare\.py command again"):
        load_manifest(str(tmp_path))


def test_a_shard_that_is_gone(dataset: Path) -> None:
    manifest = load_manifest(str(dataset))
    (dataset / "shards" / "val-00000.parquet").unlink()
    with pytest.raises(BadVideo, match="val-00000.parquet") as caught:
        reader.fetch(manifest, 9)
    assert caught.value.reason == "missing"


def test_a_changed_byte_in_a_shard_is_the_finding_of_its_video(dataset: Path) -> None:
    manifest = load_manifest(str(dataset))
    assert manifest.placement is not None
    shard, at = dataset / "shards" / "train-00000.parquet", int(manifest.placement.offsets[1]) + 1000
    with shard.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    assert reader.fetch(manifest, 0)
    with pytest.raises(BadVideo, match=r"train-00000\.parquet are not those that were stored; delete") as caught:
        reader.fetch(manifest, 1)
    assert caught.value.reason == "damaged"


@pytest.mark.parametrize("name", ["/../../../escape", "..", "a/b", "a\x1b[2J", "x" * 500])
def test_names_of_a_strangers_dataset_leave_no_folder(dataset: Path, name: str) -> None:
    about = json.loads((dataset / "dataset.json").read_text())
    about.pop("sha256")  # which a stranger leaves out, as earlier versions did
    for label_sets in ({name: about["label_sets"]["action"]}, {"action": ["a", 5]}, ["action"]):
        (dataset / "dataset.json").write_text(json.dumps({**about, "label_sets": label_sets}))
        with pytest.raises(ManifestError, match=r"dataset\.json has .*it was not written by jobs/prepare\.py"):
            load_manifest(str(dataset))


def test_a_shard_of_another_folder_is_not_read(dataset: Path) -> None:
    index = pq.read_table(dataset / "index.parquet")
    column = index.column_names.index("shard")
    moved = index.set_column(column, "shard", pa.array(["../../other.parquet"] * len(index)))
    pq.write_table(moved, dataset / "index.parquet")
    about = json.loads((dataset / "dataset.json").read_text())
    about.pop("sha256")
    about["index_sha256"] = hashlib.sha256((dataset / "index.parquet").read_bytes()).hexdigest()
    (dataset / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(ManifestError, match=r"names the shard '\.\./\.\./other\.parquet'; no shard has such a name"):
        load_manifest(str(dataset))
