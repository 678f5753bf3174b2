"""What a user gets wrong is one clear message that names the thing and the remedy, and a status that is not zero."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.jobs.processes import in_a_fork, refusal, start, without_ray
from tests.servers import S3Server, free_port

pytestmark = pytest.mark.cluster


def refused_with(environment: dict[str, str], *arguments: str) -> str:
    """What `jobs/train.py ...` prints in a process with these variables, which must refuse."""
    status, said = in_a_fork("train", arguments, {**without_ray(), **environment})
    assert status == 2, said
    return said


def refused(cases: list[list[str]], environment: dict[str, str] | None = None) -> list[str]:
    """What each `jobs/train.py ...` prints; all are started together, and every one must refuse."""
    jobs = [start("train", *arguments, environment=environment) for arguments in cases]
    outputs = []
    for job in jobs:
        output, _ = job.communicate(timeout=200)
        assert job.returncode == 2, output
        assert "Traceback" not in output
        outputs.append(output)
    return outputs


def test_recipes_and_fields(toy_folder: Path) -> None:
    data = ["--data", str(toy_folder)]
    recipe, field = refused([["tony", *data], ["toy", *data, "--optim.rate", "1"]])
    choice = refusal("train", "toy", *data, "--optim.schedule", "linear")
    value = refusal("train", "toy", *data, "--optim.lr", "-1")
    assert "unknown recipe 'tony' (did you mean toy?); known: toy" in recipe
    assert "--optim.lr" in field
    assert "linear" in choice
    assert "cosine" in choice
    assert "lr=-1.0 must be above 0" in value


def test_videos_that_are_not_there(tmp_path: Path, toy_folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    real = next((toy_folder / "train" / "period_10").iterdir())
    (tmp_path / "labels.csv").write_text(f"uri,label\n{real},walk\nabsent.mp4,run\n")
    places = [str(tmp_path / name) for name in ("nowhere", "empty", "labels.csv")]
    nowhere, empty, labels = (refusal("train", "toy", "--data", place) for place in places)
    assert "nothing at" in nowhere
    assert "check the spelling" in nowhere
    assert str(tmp_path / "empty") in empty
    assert ".mp4" in empty
    assert "absent.mp4" in labels


def test_object_storage(s3: S3Server) -> None:
    missing = refused_with(s3.environment, "toy", "--data", "s3://nobucket/videos")
    assert "NoSuchBucket" in missing
    wrong = {**s3.environment, "AWS_SECRET_ACCESS_KEY": "wrong-and-secret"}
    output = refused_with(wrong, "toy", "--data", f"s3://{s3.bucket}/videos")
    assert "SignatureDoesNotMatch" in output
    assert "AWS_SECRET_ACCESS_KEY" in output
    assert "wrong-and-secret" not in output
    nobody = {**s3.environment, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}
    (output,) = refused([["toy", "--data", f"s3://{s3.bucket}/videos"]], nobody)  # though a running job waits for it
    assert re.search(r"tried \d+ times in 10 s\): no answer .*check AWS_ENDPOINT_URL", output), output


def test_machines_and_servers(toy_folder: Path, tmp_path: Path) -> None:
    common = ["toy", "--data", str(toy_folder), "--storage", str(tmp_path)]
    wrong = (["--workers", "500"], ["--cpus-per-worker", "500"], ["--views", "3x7"])
    workers, cores, views = (refusal("train", *common, *flags) for flags in wrong)
    server = refused_with({}, *common, "--tracking-uri", "http://127.0.0.1:9")
    assert "500 workers cannot share the 2 micro-batches of a step" in workers
    assert "too few cores: the workers need 500 CPUs" in cores
    assert "views '3x7' are not known" in views
    assert "cannot be used: Connection refused\nCheck --tracking-uri" in server
    assert list(tmp_path.iterdir()) == [], "a refused job has left something behind"


def test_names_that_would_leave_their_folder(toy_folder: Path, tmp_path: Path) -> None:
    common = ["toy", "--data", str(toy_folder), "--storage", str(tmp_path / "runs")]
    for job, flag, name in (
        ("train", "--name", "../escape"),
        ("train", "--name", "a/b"),
        ("train", "--register", "a'b"),
        ("tune", "--name", "..\x1b[2J"),
    ):
        said = refusal(job, *common, flag, name)
        assert f"{flag} {name!r} is not a valid name" in said
        assert "\x1b" not in said
    assert not (tmp_path / "escape").exists()
