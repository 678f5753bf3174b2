"""Campaigns as a user runs them: promotion with a killed driver; MLflow, report, hours, refusals."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from tests.chaos import campaigns
from tests.jobs.processes import refusal, run_on
from tests.ray_head import RayHead
from tpn_ray import checkpoint as checkpoints
from tpn_ray import storage, tracking
from tpn_ray.tuning.journal import Journal
from tpn_ray.tuning.rungs import ranked

pytestmark = pytest.mark.cluster

SMALL = ["--loop.evaluate-every-epochs", "1", "--loop.batch-clips", "8", "--loop.micro-batch-clips", "8"]
SMALL += ["--decode-tasks", "1"]


def arguments(data: Path, storage: Path, name: str, *more: str) -> list[str]:
    places = ["--data", str(data), "--storage", str(storage), "--name", name]
    return ["toy", *places, "--max-concurrent", "2", *SMALL, *more]


def test_a_campaign(cluster: RayHead, toy_folder: Path, tmp_path: Path) -> None:
    flags = arguments(toy_folder, tmp_path, "all", "--samples", "2", "--loop.epochs", "2", "--space", "lambda_alpha")
    status, output = run_on(cluster, "tune", *flags, "--optim.lr", "0.05")
    assert status == 0, output
    _check_campaign(tmp_path, "all", output)
    assert "--optim.lr 0.05 " in _command(output), "what the user gave is part of the best recipe"


@pytest.mark.long
def test_the_printed_command_trains_the_best_trial_again(cluster: RayHead, toy_folder: Path, tmp_path: Path) -> None:
    flags = arguments(toy_folder, tmp_path, "best", "--samples", "2", "--loop.epochs", "2", "--optim.momentum", "0.8")
    status, output = run_on(cluster, "tune", *flags)
    assert status == 0, output
    best = ranked(Journal(uri=str(tmp_path / "best")).trials())[0]
    pasted = shlex.split(_command(output))
    status, output = run_on(cluster, "train", *pasted, "--storage", str(tmp_path), "--name", "pasted")
    assert status == 0, output
    found = checkpoints.load(best.points[-1].checkpoint).weights
    trained = checkpoints.load(str(tmp_path / "pasted" / storage.name(best.points[-1].checkpoint))).weights
    assert found.keys() == trained.keys()
    assert all(torch.equal(found[name], trained[name]) for name in found)


@pytest.mark.long
def test_a_campaign_whose_driver_is_killed_has_the_undisturbed_table(tmp_path: Path) -> None:
    report = campaigns.attack(str(tmp_path), kills=1, seed=0, epochs=2, samples=2)  # after an evaluation
    print(report)
    report.check()
    assert (report.kills, report.trials, report.epochs) == (1, 2, 3)
    output = (tmp_path / "under-fire.log").read_text()
    assert "the campaign resumes: " in output
    assert "--optim.lr" in output
    _check_campaign(tmp_path, "under-fire", output)


def _check_campaign(storage: Path, name: str, output: str) -> None:
    folder = storage / name
    trials = Journal(uri=str(folder)).trials()
    (promoted,) = [trial for trial in trials if trial.epochs == 2]
    assert promoted.history == ["promoted at epoch 1"]
    assert promoted.points[0].score == max(trial.points[0].score for trial in trials)
    assert checkpoints.load(promoted.points[-1].checkpoint).step == 8
    assert "--loss.lambdas" in _command(output)
    assert " --workers 1 " in _command(output), "a trial's number of workers, which decides the bits"
    assert (folder / "report.html").stat().st_size > 10**6
    _check_family(tracking.local_uri(str(storage)), name)


def _command(output: str) -> str:
    """What follows the program in the command that trains the best recipe."""
    command = re.search(r"python jobs/train\.py (.*)", output)
    assert command, output
    return command[1]


def _check_family(uri: str, name: str) -> None:
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("tpn_ray").experiment_id])
    (parent,) = [run for run in runs if tracking.PARENT_TAG not in run.data.tags and run.info.run_name == name]
    children = [run for run in runs if run.data.tags.get(tracking.PARENT_TAG) == parent.info.run_id]
    assert len(children) == 2
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert len({child.data.params["loss.lambdas"] for child in children}) == 2
    assert "promoted at epoch 1" in {child.data.tags["lineage"] for child in children}
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"leaderboard.json", "best_recipe.txt", "recipe.json", "report.html", "report.md"} <= files
    (version,) = client.search_model_versions(f"name = '{name}'")
    assert version.tags["checkpoint"] == parent.data.tags["best_checkpoint"]
    assert client.get_model_version_by_alias(name, "champion").version == version.version


def test_spent_hours_leave_a_campaign_that_goes_on(cluster: RayHead, toy_folder: Path, tmp_path: Path) -> None:
    flags = arguments(toy_folder, tmp_path, "short", "--samples", "2", "--loop.epochs", "1", "--rungs", "1")
    status, output = run_on(cluster, "tune", *flags, "--budget-hours", "0.0005")
    assert status == 2, output
    assert "the 0.0005 hours of --budget-hours are spent; nothing is lost" in output
    assert len(json.loads((tmp_path / "short" / "waves" / "0000.json").read_text())) == 2


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("scheduler", "searcher", "objectives"),
    [
        ("asha", "tpe", "top1"),
        ("median", "random", "top1"),
        ("hyperband", "random", "top1"),
        ("pbt", "random", "top1"),
        ("halving", "tpe", "top1+gmacs"),
    ],
)
def test_every_scheduler_to_its_end(
    cluster: RayHead, scheduler: str, searcher: str, objectives: str, toy_folder: Path, tmp_path: Path
) -> None:
    """What promotion's tests do not see: Ray Tune's own schedulers, with a model and with two objectives."""
    how = ["--scheduler", scheduler, "--searcher", searcher, "--objectives", objectives, "--samples", "4"]
    flags = arguments(toy_folder, tmp_path, scheduler, *how, "--loop.epochs", "4", "--space", "lambda_alpha")
    status, output = run_on(cluster, "tune", *flags)
    assert status == 0, output
    trials = Journal(uri=str(tmp_path / scheduler)).trials()
    assert [trial.number for trial in trials] == list(range(4))
    assert not [trial.failure for trial in trials if trial.failure], output
    assert max(trial.epochs for trial in trials) == 4
    for trial in trials:
        epochs = [point.epoch for point in trial.points]
        assert epochs == sorted(set(epochs)), "no epoch is trained twice"
    assert (tmp_path / scheduler / "report.html").stat().st_size > 10**6
    status, again = run_on(cluster, "tune", *flags)
    assert status == 0, again
    assert Journal(uri=str(tmp_path / scheduler)).trials() == trials, "a finished campaign trains nothing"


def test_a_wrong_name_is_refused_before_any_trial(toy_folder: Path) -> None:
    said = refusal("tune", "toy", "--data", str(toy_folder), "--vary", "optim.rate=uniform(0,1)")
    assert "unknown field of a recipe 'optim.rate'" in said
