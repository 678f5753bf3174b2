"""The budget of failures: by progress, and not spent on what no new group of workers can mend."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray.exceptions
import ray.train

from tpn_ray import recipes, session
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.errors import (
    CheckpointError,
    ConfigError,
    StorageError,
    StorageRefusedError,
    TornCheckpointError,
    TrainingError,
)
from tpn_ray.recipe import replace_fields
from tpn_ray.training.events import Committed, Event, Failed
from tpn_ray.training.losses import CONTROLLER_STARTS, End, Losses, Lost, StartAgain, decide, is_lasting
from tpn_ray.training.machines import Machines
from tpn_ray.training.run import train
from tpn_ray.training.run_plan import recipe_for
from tpn_ray.training.saving import Saving
from tpn_ray.training.trainer import what_was_lost


def ends_after(lost: Lost, max_failures: int, progress_every: int = 0, most: int = 100) -> int | None:
    """After how many losses in all a run ends; None: not within `most`."""
    losses = Losses()
    for count in range(1, most + 1):
        progress = bool(progress_every) and count % progress_every == 0
        decision = decide(lost, losses, progress=progress, max_failures=max_failures)
        if isinstance(decision, End):
            return count
        losses = decision.losses
    return None


def test_workers_may_be_lost_again_once_the_run_has_come_further() -> None:
    assert [ends_after(Lost.WORKERS, allowed) for allowed in (0, 1, 3)] == [1, 2, 4]
    assert ends_after(Lost.WORKERS, 3, progress_every=3) is None
    assert ends_after(Lost.WORKERS, 3, progress_every=5) == 4
    assert ends_after(Lost.WORKERS, 0, progress_every=1) == 1, "none may be lost"
    assert ends_after(Lost.WORKERS, -1) is None


def test_controllers_have_a_budget_of_their_own() -> None:
    assert ends_after(Lost.CONTROLLER, 0) == CONTROLLER_STARTS
    assert ends_after(Lost.CONTROLLER, 0, progress_every=CONTROLLER_STARTS - 1) is None
    decision = decide(Lost.CONTROLLER, Losses(workers=2), progress=False, max_failures=3)
    assert decision == StartAgain(Losses(workers=2, controllers=1))


def test_what_would_come_again_ends_the_run_whatever_progress_it_made() -> None:
    for progress in (True, False):
        assert decide(Lost.FOR_GOOD, Losses(), progress=progress, max_failures=9) == End()
    assert decide(Lost.PLACES, Losses(workers=1), progress=True, max_failures=3) == StartAgain(Losses())
    assert decide(Lost.PLACES, Losses(), progress=False, max_failures=3) == End()


def lost_by(error: Exception) -> Lost:
    """By a worker that ended with this error, whose copy is made as it travels."""
    return what_was_lost(copy.deepcopy(ray.train.WorkerGroupError("two workers", {1: error})))


def test_errors_that_the_next_workers_would_meet_are_told_from_those_that_pass() -> None:
    for error in (CheckpointError("of another network"), ConfigError("x"), StorageRefusedError("the disk is full")):
        assert lost_by(error) is Lost.FOR_GOOD
        assert is_lasting(error)
    assert lost_by(TrainingError("no validation video could be used")) is Lost.FOR_GOOD
    for error in (StorageError("no answer"), TornCheckpointError("torn"), ValueError("a fault"), OSError("gone")):
        assert lost_by(error) is Lost.WORKERS
    assert lost_by(ray.exceptions.ActorDiedError()) is Lost.WORKERS
    assert what_was_lost(ray.exceptions.ActorDiedError()) is Lost.CONTROLLER
    assert what_was_lost(ray.train.ControllerError(ray.exceptions.ActorDiedError())) is Lost.CONTROLLER
    assert what_was_lost(ray.train.ControllerError(RuntimeError("no places"))) is Lost.PLACES
    assert what_was_lost(ValueError("of the driver's own")) is Lost.FOR_GOOD


@pytest.fixture
def ray_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RAY_ADDRESS", "")  # restored afterwards: the session names its own Ray there
    session.connect("", workers_cpus=1, decode_cpus=1)
    yield
    session.disconnect()


@pytest.mark.long
@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_a_run_may_lose_more_workers_than_in_a_row(toy_folder: Path, tmp_path: Path, ray_here: None) -> None:
    manifest = load_manifest(str(toy_folder))
    # 24 steps: events arrive while the worker goes on, and both must arrive before it has ended.
    short = {"loop.epochs": 6, "loop.evaluate_every_epochs": 6, "loop.batch_clips": 8, "loop.micro_batch_clips": 8}
    recipe = recipe_for(replace_fields(recipes.toy(), short), manifest)
    events: list[Event] = []
    killed: list[int] = []

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, Committed) and not event.scores and len(killed) < 2:
            killed.extend(kill_the_worker())

    result = train(
        recipe,
        manifest,
        Machines(workers=1),
        storage_uri=str(tmp_path),
        name="run",
        on_event=on_event,
        saving=Saving(every_steps=1),
        max_failures=1,
    )
    assert len(killed) == 2
    assert sum(isinstance(event, Failed) for event in events) >= 2
    assert result.last.endswith("step-00000024")


def kill_the_worker() -> list[int]:
    for process in psutil.Process(os.getpid()).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith("ray::RayTrainWorker"):
                process.kill()
                return [process.pid]
    return []
