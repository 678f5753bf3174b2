"""A campaign as a user runs it: ASHA over lambda, alpha and the schedule, parent and child runs in MLflow."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.jobs.processes import run
from tpn_ray import tracking

pytestmark = pytest.mark.cluster


def test_a_first_campaign(toy_folder: Path, tmp_path: Path) -> None:
    flags = ["toy", "--data", str(toy_folder), "--storage", str(tmp_path), "--name", "search", "--samples", "3"]
    flags += ["--at-once", "2", "--loop.epochs", "2", "--loop.evaluate-every-epochs", "1"]
    status, output = run("tune", *flags, seconds=280)
    assert status == 0, output
    trials = set(re.findall(r"^trial (\S+)  epoch \d  validation top-1", output, re.MULTILINE))
    assert len(trials) == 3
    command = re.search(r"python jobs/(train)\.py (.*)", output)
    assert command, output
    assert all(flag in command[2] for flag in ("--loss.lambdas", "--optim.lr"))
    _check_family(tracking.local_uri(str(tmp_path)))


def _check_family(uri: str) -> None:
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("tpn_ray").experiment_id])
    (parent,) = [run for run in runs if tracking.PARENT_TAG not in run.data.tags]
    children = [run for run in runs if run.data.tags.get(tracking.PARENT_TAG) == parent.info.run_id]
    assert len(children) == 3
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {child.data.params["optim.lr"] for child in children} != {parent.data.params["optim.lr"]}
    assert len({child.data.params["optim.lr"] for child in children}) == 3
    assert max(child.data.metrics["val/top1"] for child in children) <= parent.data.metrics["best/val_top1"]
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"leaderboard.json", "best_recipe.txt", "recipe.json"} <= files


def test_unknown_space_and_scheduler(toy_folder: Path) -> None:
    status, output = run("tune", "toy", "--data", str(toy_folder), "--space", "lambdas")
    assert status == 2
    assert "unknown space 'lambdas'; known: lambda_alpha" in output
