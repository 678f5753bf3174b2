"""What the driver does without a cluster: folders are claimed, finished shards known, failures rebuilt."""

from __future__ import annotations

from pathlib import Path

import pytest

from tpn_ray import storage
from tpn_ray.clips.shards import SHARDS, shard_bytes
from tpn_ray.errors import ConfigError, StorageError
from tpn_ray.prepare import driver
from tpn_ray.prepare.layout import ShardPlan
from tpn_ray.prepare.report import progress_line, size
from tpn_ray.prepare.worker import Totals


def test_a_folder_belongs_to_one_job(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    driver.claim(out, {"encode": {"crf": 23}})
    driver.claim(out, {"encode": {"crf": 23}})
    with pytest.raises(ConfigError, match=r"(?s)other settings or other videos:.*encode.crf: 23 then, 20 now.*--out"):
        driver.claim(out, {"encode": {"crf": 20}})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(ConfigError, match="is not empty and was not made by this job"):
        driver.claim(str(tmp_path / "mine"), {})


def test_finished_shards(tmp_path: Path) -> None:
    plans = [ShardPlan(name=f"train-{n:05d}.parquet", split="train", rows=(n,)) for n in range(3)]
    assert driver.finished(str(tmp_path), plans, "x") == {}
    for number, job in ((0, "x"), (2, "x")):
        data = shard_bytes([], [(number, "u", "empty", "m")], job=job, split="train")
        storage.write_bytes(storage.join(str(tmp_path), SHARDS, plans[number].name), data)
    leftover = tmp_path / SHARDS / ".train-00001.parquet.0123"
    leftover.write_bytes(b"half of it")
    assert sorted(driver.finished(str(tmp_path), plans, "x")) == [plans[0].name, plans[2].name]
    driver.remove_leftovers(str(tmp_path))
    assert not leftover.exists()
    with pytest.raises(StorageError, match="made with other settings; delete it"):
        driver.finished(str(tmp_path), plans, "y")


def test_errors_of_tasks_come_back_as_they_were() -> None:
    error = driver.rebuild("StorageError: cannot write s3://b/k: SlowDown: too much")
    assert type(error) is StorageError
    assert str(error) == "cannot write s3://b/k: SlowDown: too much"


def test_the_progress_line() -> None:
    totals = Totals(videos=30, frames=3000, video_bytes=5 * 1024**2, bad={1: (1, "u", "empty", "m")})
    progress = driver.Progress(videos_in_all=131, before=50, totals=totals, bad=3, seconds=10)
    assert progress_line(progress) == "81/131 videos  3 bad  300 frames/s  5.0 MB made  16 s left"
    assert progress_line(driver.Progress(videos_in_all=5, before=5, totals=Totals(), bad=0, seconds=0)).startswith(
        "5/5"
    )
    assert [size(count) for count in (2048, 3 * 1024**2, 5 * 1024**3)] == ["2 kB", "3.0 MB", "5.0 GB"]
