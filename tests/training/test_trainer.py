from __future__ import annotations

import dataclasses
import time

import pytest
import ray.exceptions
import ray.train
import ray.util

from tests.training.small_runs import ledger_of
from tpn_ray import mailbox, session, storage
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import CheckpointError, StorageError, TrainingError
from tpn_ray.resources import GROW_SECONDS, PATIENCE_SECONDS, Decoding
from tpn_ray.training import placement, trainer
from tpn_ray.training.events import Event, Failed
from tpn_ray.training.machines import Machines
from tpn_ray.training.trainer import explain, fit


@pytest.mark.parametrize("progress", [True, False])
def test_failures_to_place_workers_before_the_last_progress_are_past(
    progress: bool, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train gives up after some of them in all, which a run of weeks on nodes that come and go would meet."""
    ledger, fits = ledger_of(manifest, []), list[int]()
    monkeypatch.setattr(trainer.mailbox, "take", lambda mail: [])

    class Trainer:
        def fit(self) -> None:
            fits.append(len(fits))
            ledger.commits += progress
            if len(fits) < 3:
                raise ray.train.ControllerError(RuntimeError("a worker was lost while it started"))

    if progress:
        fit(Trainer, None, ledger, 60.0, 0)  # type: ignore[arg-type]
        assert len(fits) == 3
    else:
        with pytest.raises(TrainingError, match="a worker was lost while it started"):
            fit(Trainer, None, ledger, 60.0, 0)  # type: ignore[arg-type]
        assert len(fits) == 1


@pytest.mark.parametrize(
    ("error", "groups"), [(CheckpointError("of another network"), 1), (ValueError("a fault that may pass"), 3)]
)
def test_an_error_that_would_come_again_takes_one_group_of_workers(
    error: Exception, groups: int, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[int] = []
    monkeypatch.setattr(trainer.mailbox, "take", lambda mail: [])

    class Trainer:
        def fit(self) -> None:
            fits.append(len(fits))
            raise ray.train.WorkerGroupError("one worker", {0: error})

    with pytest.raises((CheckpointError, TrainingError), match=str(error)):
        fit(Trainer, None, ledger_of(manifest, []), 60.0, 2)  # type: ignore[arg-type]
    assert len(fits) == groups


def test_workers_wait_for_each_other_longer_than_one_of_them_may_wait_for_clips_and_storage() -> None:
    machines = Machines(collective_minutes=2, decoding=Decoding(may_grow=True))
    seconds = trainer.collective_seconds(machines)
    assert seconds == 120 + GROW_SECONDS + storage.patience_seconds()
    fixed = dataclasses.replace(machines, decoding=Decoding())
    assert trainer.collective_seconds(fixed) == 120 + PATIENCE_SECONDS + storage.patience_seconds()
    assert trainer.environment(machines)["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"] == "120"


@pytest.mark.long
@pytest.mark.cluster
def test_a_controller_that_ends_with_a_worker_is_replaced_and_its_places_are_freed(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at the moment when training is started on it, a worker takes the controller along. Seen at kill 27 of 200:
    the places of that group stayed taken, and the next one waited for clips for ever."""
    monkeypatch.setenv("RAY_ADDRESS", "")  # restored afterwards: the session names its own Ray there
    session.connect("", workers_cpus=1, decode_cpus=1)
    seen, fits = list[Event](), list[int]()
    monkeypatch.setattr(placement, "LOOK_SECONDS", 1.0)
    monkeypatch.setattr(placement, "is_placed", lambda group: True)
    mail = mailbox.beside_driver()

    class Trainer:
        def fit(self) -> None:
            fits.append(len(fits))
            if len(fits) == 1:
                group = ray.util.placement_group([{"CPU": 1}] * 2)
                ray.get(group.ready(), timeout=60)
                raise ray.train.ControllerError(ray.exceptions.ActorDiedError())
            deadline = time.monotonic() + 90
            while ray.available_resources().get("CPU", 0.0) < ray.cluster_resources()["CPU"]:
                assert time.monotonic() < deadline, "the places stay taken"
                time.sleep(0.2)

    try:
        fit(Trainer, mail, ledger_of(manifest, seen), 600.0, 0)  # type: ignore[arg-type]
    finally:
        session.disconnect()
    assert len(fits) == 2
    assert [type(event) for event in seen] == [Failed]


def test_the_projects_own_error_is_found_inside_what_ray_raises() -> None:
    class WorkerGroupError(Exception):
        worker_failures = {1: RuntimeError("outer")}  # noqa: RUF012

    WorkerGroupError.worker_failures[1].__cause__ = StorageError("cannot read s3://b/k")
    assert isinstance(explain(WorkerGroupError()), StorageError)
    explained = explain(ValueError("first\nlast line"))
    assert isinstance(explained, TrainingError)
    assert "last line" in str(explained)
