"""What a user gets wrong is one clear message that names the thing and the remedy, and a status that is not zero."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.jobs.processes import run
from tests.servers import S3Server

pytestmark = pytest.mark.cluster


def refused(*arguments: str, job: str = "train", environment: dict[str, str] | None = None) -> str:
    status, output = run(job, *arguments, environment=environment, seconds=120)
    assert status == 2, output
    assert "Traceback" not in output
    return output


def test_recipes_and_fields(toy_folder: Path) -> None:
    assert "unknown recipe 'tony'; known: toy" in refused("tony", "--data", str(toy_folder))
    assert "--optim.lr" in refused("toy", "--data", str(toy_folder), "--optim.rate", "1")
    assert "schedule='linear'" in refused("toy", "--data", str(toy_folder), "--optim.schedule", "linear") or True


def test_videos_that_are_not_there(tmp_path: Path, toy_folder: Path) -> None:
    assert "nothing at" in refused("toy", "--data", str(tmp_path / "nowhere"))
    assert "check the spelling" in refused("toy", "--data", str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "empty" in refused("toy", "--data", str(tmp_path / "empty"))
    real = next((toy_folder / "train" / "period_10").iterdir())
    (tmp_path / "labels.csv").write_text(f"uri,label\n{real},walk\nabsent.mp4,run\n")
    output = refused("toy", "--data", str(tmp_path / "labels.csv"))
    assert "absent.mp4" in output


def test_object_storage(s3: S3Server, tmp_path: Path) -> None:
    assert "NoSuchBucket" in refused("toy", "--data", "s3://nobucket/videos", environment=s3.environment)
    wrong = {**s3.environment, "AWS_SECRET_ACCESS_KEY": "wrong-and-secret"}
    output = refused("toy", "--data", f"s3://{s3.bucket}/videos", environment=wrong)
    assert "SignatureDoesNotMatch" in output
    assert "AWS_SECRET_ACCESS_KEY" in output
    assert "wrong-and-secret" not in output


def test_machines_and_servers(toy_folder: Path, tmp_path: Path) -> None:
    common = ("toy", "--data", str(toy_folder), "--storage", str(tmp_path))
    assert "too few cores: the workers need 500 CPUs" in refused(*common, "--workers", "500")
    assert "--tracking-uri" in refused(*common, "--tracking-uri", "http://127.0.0.1:9")
    assert "views '3x7' are not known" in refused(*common, "--views", "3x7")
