"""A running job that is told to stop, as Kubernetes and `ray job stop` do, after Ray has put its handler in place."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.jobs.processes import start
from tpn_ray import tracking

pytestmark = pytest.mark.cluster


@pytest.mark.long
def test_sigterm_stops_a_run_as_ctrl_c_does(toy_folder: Path, tmp_path: Path) -> None:
    flags = ["--loop.epochs", "1000", "--workers", "1", "--loop.batch-clips", "8", "--loop.micro-batch-clips", "4"]
    job = start("train", "toy", "--data", str(toy_folder), "--storage", str(tmp_path), *flags)
    assert job.stdout is not None
    try:
        seen = ""
        while "step " not in seen:
            line = job.stdout.readline()
            assert line, seen
            seen += line
        job.send_signal(signal.SIGTERM)
        said, _ = job.communicate(timeout=60)
    finally:
        job.kill()
    assert job.returncode == 143, said
    name = re.search(r"; run (\S+) in ", seen)
    assert name
    assert f"stopped; the same command with --name {name[1]} resumes where this one stopped\n" in said
    assert "Traceback" not in said
    client = MlflowClient(tracking.local_uri(str(tmp_path)))
    experiment = client.get_experiment_by_name("tpn_ray")
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["KILLED"]
