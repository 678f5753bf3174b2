"""What the driver does without a cluster: folders are claimed, finished shards known, failures rebuilt."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tpn_ray import lease, storage
from tpn_ray.datasets.entries import Entry
from tpn_ray.datasets.manifest import Manifest, build
from tpn_ray.datasets.shards import CLAIM, DATASET, INDEX, SHARDS, shard_bytes
from tpn_ray.errors import BudgetError, ConfigError, DamagedError, LeaseError, StorageError
from tpn_ray.prepare import preparing
from tpn_ray.prepare.layout import ShardConfig, ShardPlan
from tpn_ray.prepare.messages import progress_line, size
from tpn_ray.prepare.shard_maker import PrepareJob, Totals
from tpn_ray.resources import Decoding
from tpn_ray.sandbox.process import SandboxLimits
from tpn_ray.videos.encode import EncodeConfig


def test_a_folder_belongs_to_one_job(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    preparing.claim(out, {"encode": {"crf": 23}})
    preparing.claim(out, {"encode": {"crf": 23}})
    with pytest.raises(ConfigError, match=r"(?s)other settings or other videos:.*encode.crf: 23 then, 20 now.*--out"):
        preparing.claim(out, {"encode": {"crf": 20}})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(ConfigError, match=r"is not empty and was not made by this job: it has .*/thesis.txt"):
        preparing.claim(str(tmp_path / "mine"), {})


def test_a_damaged_claim_is_named_with_a_way_on(tmp_path: Path) -> None:
    preparing.claim(str(tmp_path), {"encode": {"crf": 23}})
    storage.write_bytes(storage.join(str(tmp_path), SHARDS, "train-00000.parquet"), b"a shard")
    for torn in (b"", b"[]", (tmp_path / CLAIM).read_bytes().replace(b"23", b"20")):
        (tmp_path / CLAIM).write_bytes(torn)
        with pytest.raises(DamagedError, match=r"prepare.json is damaged: .*\. Delete it: the same command writes it"):
            preparing.claim(str(tmp_path), {"encode": {"crf": 23}})
    (tmp_path / CLAIM).unlink()
    preparing.claim(str(tmp_path), {"encode": {"crf": 23}})
    (tmp_path / CLAIM).write_text('{"encode": {"crf": 23}}')  # as earlier versions wrote it
    preparing.claim(str(tmp_path), {"encode": {"crf": 23}})


def test_a_second_job_is_refused_and_takes_nothing_from_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = build([Entry("a", "/videos/a.mp4", ("x",), "train")], {"/videos/a.mp4": 1000}, source="test")
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    out = tmp_path / "out"
    with lease.held(str(out), "dataset out"):
        in_flight = out / SHARDS / f".train-00000.parquet.{'0' * 32}"
        storage.write_bytes(str(in_flight), b"half")
        with pytest.raises(LeaseError, match=r"another job is working on the dataset out in .*choose another --out"):
            prepare(manifest, out)
        assert in_flight.exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(ConfigError, match="was not made by this job"):
        prepare(manifest, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def prepare(manifest: Manifest, folder: Path) -> None:
    preparing.run(
        manifest,
        str(folder),
        EncodeConfig(),
        limits=SandboxLimits(),
        shards=ShardConfig(),
        decoding=Decoding(),
        max_bad=0.5,
        on_progress=lambda progress: None,
    )


def test_finished_shards(tmp_path: Path) -> None:
    plans = [ShardPlan(name=f"train-{n:05d}.parquet", split="train", rows=(n,)) for n in range(3)]
    assert preparing.finished(str(tmp_path), plans, "x") == {}
    for number, job in ((0, "x"), (2, "x")):
        data = shard_bytes([], [(number, "u", "empty", "m")], job=job, split="train")
        storage.write_bytes(storage.join(str(tmp_path), SHARDS, plans[number].name), data)
    assert sorted(preparing.finished(str(tmp_path), plans, "x")) == [plans[0].name, plans[2].name]
    with pytest.raises(StorageError, match="made with other settings; delete it"):
        preparing.finished(str(tmp_path), plans, "y")


def test_leftovers_of_a_killed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was being written is found under the very names that writing gives it; a user's files are not touched."""
    mine = [CLAIM, DATASET, INDEX, f"{SHARDS}/val-00001.parquet"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: pytest.fail("killed"))
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        for name in mine:
            with contextlib.suppress(pytest.fail.Exception):
                storage.write_bytes(storage.join(str(tmp_path), name), b"half of it")
    others = [tmp_path / ".notes.txt", tmp_path / SHARDS / "train-00000.parquet", tmp_path / ".thesis.parquet.bak"]
    for path in others:
        path.write_bytes(b"whole")
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == len(mine) + len(others)
    preparing.remove_leftovers(str(tmp_path))
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(others)


def test_the_budget_holds_for_what_the_tasks_told_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [Entry("a", "/videos/a.mp4", ("x",), "train"), Entry("b", "/videos/b.mp4", ("x",), "train")]
    manifest = build(entries, dict.fromkeys(("/videos/a.mp4", "/videos/b.mp4"), 1000), source="test")

    def make_shards(job: PrepareJob, decoding: Decoding, watch: Callable[[Totals], None]) -> Totals:
        for plan in job.shards:
            bad = [(row, manifest.uris[row], "empty", "it has no bytes") for row in plan.rows]
            data = shard_bytes([], bad, job=job.settings_hash, split=plan.split)
            storage.write_bytes(storage.join(job.folder, SHARDS, plan.name), data)
        return Totals()

    monkeypatch.setattr(preparing, "make_shards", make_shards)
    with pytest.raises(BudgetError, match="2 of 2 videos are bad"):
        prepare(manifest, tmp_path)
    assert not (tmp_path / DATASET).exists()


def test_segments_are_not_copied() -> None:
    entries = [Entry("a", "/videos/long.mp4", ("x",), "train", (1.0, 2.0))]
    manifest = build(entries, {"/videos/long.mp4": 1000}, source="test")
    preparing.refuse_copied_segments(manifest, EncodeConfig())
    with pytest.raises(ConfigError, match=r"begin between keyframes; leave it out, .* lower --crf"):
        preparing.refuse_copied_segments(manifest, EncodeConfig(copy=True))


def test_errors_of_tasks_come_back_as_they_were() -> None:
    error = preparing.rebuild("StorageError: cannot write s3://b/k: SlowDown: too much")
    assert type(error) is StorageError
    assert str(error) == "cannot write s3://b/k: SlowDown: too much"


def test_the_progress_line() -> None:
    totals = Totals(videos=30, frames=3000, video_bytes=5 * 1024**2, bad={1: (1, "u", "empty", "m")})
    progress = preparing.PrepareProgress(videos_in_all=131, before=50, totals=totals, bad=3, seconds=10)
    assert progress_line(progress) == "81/131 videos  3 bad  300 frames/s  5.0 MB made  16 s left"
    done = preparing.PrepareProgress(videos_in_all=5, before=5, totals=Totals(), bad=0, seconds=0)
    assert progress_line(done).startswith("5/5")
    assert [size(count) for count in (2048, 3 * 1024**2, 5 * 1024**3)] == ["2 kB", "3.0 MB", "5.0 GB"]
