"""jobs/prepare.py as a user runs it: killed and begun again, on disk and on S3, trained from; the same bytes always."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.checkpoints import save_untrained
from tests.jobs.processes import ROOT, refusal, run_on, start, without_ray
from tests.ray_head import RayHead
from tests.servers import S3Server
from tests.videos.hostile import HOSTILE
from tpn_ray import storage
from tpn_ray.datasets.toy import ToyConfig, write_toy

pytestmark = pytest.mark.cluster

BAD = ("empty.mp4", "garbage.mp4", "index_kept.mp4", "flipped.mp4", "sound.mp4")
FLAGS = ["--shard-videos", "6", "--max-bad", "10%", "--preset", "veryfast"]


@pytest.fixture(scope="module")
def sources(s3: S3Server) -> str:
    """48 videos of the toy dataset and five hostile files, in object storage."""
    root = f"s3://{s3.bucket}/prepare/videos"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        write_toy(root, ToyConfig(train_per_class=4, val_per_class=2))
        for name in BAD:
            storage.write_bytes(f"{root}/train/period_10/{name}", HOSTILE[name][0]())
    return root


def contents(folder: str) -> dict[str, bytes]:
    """Every file of a dataset by its path, but for who prepared it."""
    files = [file.uri for file in storage.list_files(folder) if "/lease/" not in file.uri]
    return {uri[len(folder) :]: storage.read_bytes(uri) for uri in files}


def killed_in_the_middle(arguments: list[str], environment: dict[str, str], shards: str) -> int:
    """Run the job, end it and all its processes by SIGKILL once a shard is there; how many shards were there then."""
    job = subprocess.Popen(
        [sys.executable, "jobs/prepare.py", *arguments],
        cwd=ROOT,
        env={**without_ray(), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 150
    while not (storage.exists(shards) and storage.list_files(shards)):
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline, "no shard came"
        time.sleep(0.02)
    below = psutil.Process(job.pid).children(recursive=True)
    for process in [*below, psutil.Process(job.pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # some go when others have gone
            process.kill()
    job.communicate()
    psutil.wait_procs(below, timeout=30)
    return len(storage.list_files(shards))


@pytest.fixture(scope="module")
def prepared(cluster: RayHead, sources: str, s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset on disk, by an undisturbed run."""
    folder = tmp_path_factory.mktemp("prepared") / "dataset"
    status, output = run_on(cluster, "prepare", "--data", sources, "--out", str(folder), *FLAGS)
    assert status == 0, output
    assert "videos       48 (32 train, 16 val)" in output
    assert "quarantined  5 (1 damaged, 1 empty, 2 not_video, 1 truncated)" in output
    assert "clips/s per core from the sources" in output
    return folder


def test_the_quarantine_is_exactly_the_hostile_files(prepared: Path) -> None:
    table = pq.read_table(prepared / "quarantine.parquet").to_pylist()
    assert {(storage.name(row["uri"]), row["reason"]) for row in table} == {(name, HOSTILE[name][1]) for name in BAD}


@pytest.mark.timeout(600)
def test_killed_and_begun_again(
    cluster: RayHead, sources: str, prepared: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    undisturbed, there = contents(str(prepared)), f"s3://{s3.bucket}/prepare/prepared"
    done = killed_in_the_middle(["--data", sources, "--out", there, *FLAGS], s3.environment, f"{there}/shards")
    assert done < len([name for name in undisturbed if name.startswith("/shards")]), "it was killed too late"
    status, output = run_on(cluster, "prepare", "--data", sources, "--out", there, *FLAGS)
    assert status == 0, output
    made_again = int(output.split("this run     ")[1].split()[0])
    assert made_again <= 48 - 6 * done + len(BAD), "finished shards are not made again"
    assert contents(there) == undisturbed


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_job_outlives_the_actor_that_is_told_of_every_video(toy_folder: Path, tmp_path: Path) -> None:
    out, killed = tmp_path / "out", 0
    job = start("prepare", "--data", str(toy_folder), "--out", str(out), *FLAGS)
    try:
        while job.poll() is None and not killed:
            for process in psutil.Process(job.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if " ".join(process.cmdline()).startswith("ray::Mailbox") and list(out.glob("shards/*")):
                        process.kill()
                        killed += 1
            time.sleep(0.2)
        output, _ = job.communicate(timeout=300)
    finally:
        job.kill()
    assert killed, output
    assert job.returncode == 0, output
    assert "videos       48 (32 train, 16 val)" in output


@pytest.mark.long
@pytest.mark.timeout(600)
def test_training_from_a_prepared_dataset(cluster: RayHead, prepared: Path, s3: S3Server, tmp_path: Path) -> None:
    arguments = ["toy", "--data", str(prepared), "--storage", str(tmp_path), "--name", "r", "--loop.epochs", "1"]
    sizes = ["--loop.batch-clips", "8", "--loop.micro-batch-clips", "4", "--loop.evaluate-every-epochs", "1"]
    status, output = run_on(cluster, "train", *arguments, *sizes)
    assert status == 0, output
    assert "best checkpoint" in output
    assert "bad video" not in output
    scores = pq.read_table(tmp_path / "r" / "scores.parquet").to_pylist()
    assert len(scores) == 16
    assert all(row["id"].startswith("val/period_") and not row["reason"] for row in scores)


def test_the_score_with_and_without_what_was_quarantined(cluster: RayHead, prepared: Path, tmp_path: Path) -> None:
    flags = ["--checkpoint", save_untrained(tmp_path / "untrained"), "--data", str(prepared), "--split", "train"]
    status, output = run_on(cluster, "evaluate", *flags, "--out", tmp_path / "scores")
    assert status == 0, output
    assert "32 videos scored; 0 could not be used, 5 were quarantined" in output
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    numbers = metrics["numbers"]
    assert numbers["top5"] > 0
    assert numbers["top5_of_all"] == pytest.approx(numbers["top5"] * 32 / 37)
    assert {storage.name(row["uri"]) for row in metrics["quarantined"]} == set(BAD)


def test_the_budget(cluster: RayHead, sources: str, prepared: Path) -> None:
    flags = [flag.replace("10%", "5%") for flag in FLAGS]
    status, output = run_on(cluster, "prepare", "--data", sources, "--out", str(prepared), *flags)
    assert status == 2, output
    assert "5 of 53 videos are bad" in output
    assert "raise --max-bad (now 5%)" in output
    assert "Traceback" not in output


def test_a_user_s_mistakes(toy_folder: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    for arguments, message in (
        ([], "give either --data FOLDER_OR_CSV, or --format"),
        (["--data", str(toy_folder), "--max-bad", "many"], "--max-bad is 'many'; write a share such as 1%"),
        (["--data", str(toy_folder), "--crf", "70"], "crf is 70"),
        (["--format", "ucf"], "unknown format 'ucf' (did you mean ucf101?); known: kinetics"),
    ):
        assert message in refusal("prepare", *arguments, *out).replace("\n", " ")
