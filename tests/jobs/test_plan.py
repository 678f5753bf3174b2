"""A plan as a user asks for it, on a small dataset: measured, computed, and flags that the jobs take."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TypeVar

import pytest
import tyro

from tests.jobs.processes import refusal, run_on
from tests.ray_head import RayHead
from tpn_ray import command_line, recipes
from tpn_ray.commands.train import TrainingJob
from tpn_ray.commands.tune import TuningJob

pytestmark = pytest.mark.cluster

T = TypeVar("T")
SMALL = ["--seconds", "5", "--loop.epochs", "9"]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_plan_is_measured_and_gives_flags(cluster: RayHead, toy_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    prices = ["--price-cpu-hour", "0.05", "--samples", "9", "--json", str(out)]
    status, output = run_on(cluster, "plan", "toy", "--data", toy_folder, *SMALL, *prices)
    assert status == 0, output
    found = json.loads(out.read_text())
    measured, plan = found["measured"], found["plan"]
    low, middle, high = measured["decode_clips_per_second"]
    assert 0 < low <= middle <= high
    assert measured["step_clips_per_second"][0] > 0
    assert measured["train_clips"] == 32
    assert measured["preparing"]["videos"] >= 1
    assert plan["campaign"]["epochs"] == 9 + 3 * 2 + 6
    assert plan["run"]["price"][1] > 0
    for words in ("measured", "assumed", "computed", "The dataset is not prepared", "--object-store-memory"):
        assert words in output, output
    trained = parsed(TrainingJob(data=tyro.MISSING, recipe=recipes.toy()), output, "train")
    assert trained.recipe.loop.epochs == 9
    assert trained.machines.decoding.tasks == plan["nodes"]["decode_tasks"]
    searched = parsed(TuningJob(data=tyro.MISSING, recipe=recipes.toy()), output, "tune")
    assert (searched.samples, searched.how.rungs) == (9, 3)


def parsed(default: T, output: str, job: str) -> T:
    """The printed command, taken by the job's own flags."""
    command = re.search(rf"python jobs/{job}\.py toy (.*)", output)
    assert command, output
    return command_line.parse(default, shlex.split(command[1]), program="p", description="")


def test_what_cannot_be_planned_or_measured(cluster: RayHead, toy_folder: Path) -> None:
    data = ["toy", "--data", str(toy_folder)]
    assert "no worker of 4 GPUs" in refusal("plan", *data, "--gpus-per-worker", "4")
    assert "seconds=0.0 must be above 0" in refusal("plan", *data, "--seconds", "0")
    status, output = run_on(cluster, "plan", *data, "--gpus-per-worker", "1")
    assert status == 2, output
    assert "give --step-clips-per-second" in output
    assert "Traceback" not in output
