"""What preparing left out is known again by its split."""

from __future__ import annotations

from pathlib import Path

from tpn_ray import storage
from tpn_ray.datasets.shards import shard_bytes
from tpn_ray.predict.quarantine import quarantined


def test_of_each_split_from_the_shards(tmp_path: Path) -> None:
    bad = {
        "val-00000": ("val", [(3, "/v/b.mp4", "empty", "no bytes"), (1, "/v/a.mp4", "damaged", "frame 3")]),
        "val-00001": ("val", []),
        "train-00000": ("train", [(7, "/v/c.mp4", "empty", "no bytes")]),
    }
    for name, (split, found) in bad.items():
        data = shard_bytes([], found, job="j", split=split)
        storage.write_bytes(str(tmp_path / "shards" / f"{name}.parquet"), data)
    (tmp_path / "dataset.json").write_text("{}")
    assert quarantined(str(tmp_path), {"val"}) == [
        ("/v/a.mp4", "damaged", "frame 3"),
        ("/v/b.mp4", "empty", "no bytes"),
    ]
    assert len(quarantined(str(tmp_path), {"train", "val"})) == 3


def test_video_files_have_none(tmp_path: Path) -> None:
    assert quarantined(str(tmp_path), {"val"}) == []
    assert quarantined(str(tmp_path / "list.csv"), {"val"}) == []
