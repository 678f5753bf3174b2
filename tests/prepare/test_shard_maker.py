"""Making a shard: hostile files become findings and nothing else does; the same bytes every time; sources fetched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.servers import S3Server
from tests.videos import videos
from tests.videos.hostile import HOSTILE, LIMITS
from tpn_ray import storage
from tpn_ray.datasets import shards
from tpn_ray.datasets.entries import Entry
from tpn_ray.datasets.manifest import build, load_manifest
from tpn_ray.errors import StorageError
from tpn_ray.prepare.layout import ShardConfig, plan_shards
from tpn_ray.prepare.shard_maker import Meter, PrepareJob, VideoFinding, clip_seconds, make_shard
from tpn_ray.sandbox.process import SandboxLimits
from tpn_ray.storage import StoredFile
from tpn_ray.videos.encode import EncodeConfig

GOOD = 12


def job_for(source: str, folder: str) -> PrepareJob:
    manifest = load_manifest(source)
    shard_config = ShardConfig(shard_videos=1000)
    return PrepareJob(
        manifest=manifest,
        shards=plan_shards(manifest, shard_config),
        encode=EncodeConfig(),
        limits=LIMITS,
        folder=folder,
        settings_hash="x",
    )


def make(job: PrepareJob) -> dict[str, tuple[bytes, shards.ShardSummary]]:
    for number in range(len(job.shards)):
        make_shard(job, number, lambda finding: None)
    made = {}
    for plan in job.shards:
        uri = storage.join(job.folder, shards.SHARDS, plan.name)
        data = storage.read_bytes(uri)
        made[plan.name] = data, shards.read_summary(StoredFile(uri, len(data)))
    return made


@pytest.fixture(scope="module")
def hostile_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good videos of two classes, and one of each hostile kind."""
    folder = tmp_path_factory.mktemp("hostile")
    good = videos.encode(frames=20)
    for name, data in [
        *((f"good{number:02d}.mp4", good + bytes(number)) for number in range(GOOD)),
        *((name, make_file()) for name, (make_file, _) in HOSTILE.items()),
    ]:
        path = folder / "train" / ("run" if hash_of(name) else "jump") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def hash_of(name: str) -> int:
    return sum(name.encode()) % 2


def test_the_quarantine_is_exactly_the_hostile_files(hostile_folder: Path, tmp_path: Path) -> None:
    findings: list[VideoFinding] = []
    job = job_for(str(hostile_folder), str(tmp_path / "a"))
    assert len(job.shards) == 1
    make_shard(job, 0, findings.append)
    ((data, summary),) = make(job_for(str(hostile_folder), str(tmp_path / "b"))).values()
    assert data == (tmp_path / "a" / "shards" / "train-00000.parquet").read_bytes(), "the same in every run"
    assert {storage.name(uri): reason for _, uri, reason, _ in summary.bad} == {
        name: reason for name, (_, reason) in HOSTILE.items()
    }
    assert len(summary.index) == GOOD
    assert sorted(finding.row for finding in findings) == list(range(GOOD + len(HOSTILE)))
    meter = Meter()
    for finding in [*findings, *findings]:
        meter.add(finding)
    totals = meter.totals
    assert (totals.videos, totals.frames, len(totals.bad)) == (GOOD, 20 * GOOD, len(HOSTILE)), "none counts twice"


def test_segments_and_absent_videos(tmp_path: Path) -> None:
    (tmp_path / "long.mp4").write_bytes(videos.encode(frames=100))
    long, gone = str(tmp_path / "long.mp4"), str(tmp_path / "gone.mp4")
    spans = [(0.0, 0.8), (1.0, 3.0), (3.9, 4.0), (8.0, 9.0)]
    entries = [Entry(f"s{n}", long, ("x",), "train", span) for n, span in enumerate(spans)]
    entries.append(Entry("gone", gone, ("x",), "train", (0.0, 1.0)))
    manifest = build(entries, {long: 1000, gone: -1}, source="test")
    job = PrepareJob(
        manifest=manifest,
        shards=plan_shards(manifest, ShardConfig()),
        encode=EncodeConfig(),
        limits=SandboxLimits(),
        folder=str(tmp_path / "out"),
        settings_hash="x",
    )
    ((_, summary),) = make(job).values()
    frames = {row["id"]: (row["frame_count"], row["start_seconds"], row["end_seconds"]) for row in summary.index}
    assert frames == {"s0": (20, 0.0, 0.8), "s1": (50, 1.0, 3.0)}
    assert {(storage.name(uri), reason) for _, uri, reason, _ in summary.bad} == {
        ("long.mp4#t=3.9,4", "too_short"),
        ("long.mp4#t=8,9", "too_short"),
        ("gone.mp4#t=0,1", "missing"),
    }


def test_the_same_from_object_storage(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    root = f"s3://{s3.bucket}/worker"
    for number in range(12):
        storage.write_bytes(f"{root}/videos/train/run/{number}.mp4", videos.encode(frames=8 + number))
    ((_, summary),) = make(job_for(f"{root}/videos", f"{root}/out")).values()
    assert sorted(row["frame_count"] for row in summary.index) == list(range(8, 20))
    gone = job_for(f"{root}/videos", f"{root}/out")
    storage.delete_folder(f"{root}/videos")
    ((_, summary),) = make(gone).values()
    assert {reason for _, _, reason, _ in summary.bad} == {"missing"}
    assert len(summary.bad) == 12
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match="SignatureDoesNotMatch"):  # no fault of the videos: it ends the job
        make_shard(gone, 0, lambda finding: None)


def test_what_it_saves_is_measured_in_cpu_seconds() -> None:
    slow, fast = videos.encode(frames=80, size=(256, 344), gop=250), videos.encode(frames=80, size=(64, 64))
    before, after = clip_seconds([(slow, fast), (slow, fast)])
    assert before > 2 * after > 0


def test_a_dataset_of_good_and_bad_videos(hostile_folder: Path, tmp_path: Path) -> None:
    job = job_for(str(hostile_folder), str(tmp_path))
    job = replace(job, shards=[replace(job.shards[0], rows=job.shards[0].rows[:6])])
    summaries = {name: summary for name, (_, summary) in make(job).items()}
    shards.write_dataset(str(tmp_path), summaries, job.manifest.label_sets, {})
    manifest = load_manifest(str(tmp_path))
    assert len(manifest) + len(summaries["train-00000.parquet"].bad) == 6
    assert manifest.labels.tolist() == [row["labels"] for row in summaries["train-00000.parquet"].index]
