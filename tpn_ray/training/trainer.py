"""Ray Train's trainers: one after the other until a run is done, and what ended each of them. Runs on the driver."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import fsspec
import ray
import ray.exceptions
import ray.train
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train.torch import TorchConfig, TorchTrainer

from tpn_ray import mailbox, storage
from tpn_ray.errors import TpnRayError, TrainingError
from tpn_ray.training import worker
from tpn_ray.training.accounting import RunLedger
from tpn_ray.training.events import Failed
from tpn_ray.training.losses import End, Losses, Lost, decide, is_lasting
from tpn_ray.training.machines import Machines
from tpn_ray.training.placement import Places, release

TAKE_SECONDS = 0.5
"""Pause between two checks for what the workers sent."""
START_ATTEMPTS = 5
"""Times that Ray Train may fail to place its workers (60 s each) before a run of fixed size on a fixed cluster gives
up. Other runs are limited by time only: Ray counts over the whole run, and every lost node may cost an attempt."""
ELASTIC_START_SECONDS = 20
"""Longest time that Ray Train waits for the workers of an elastic run before it tries with fewer."""
DATA_SHARE_SECONDS = 45
"""How long lost decoding keeps its share of the cluster's CPUs, which the next decoding needs. Ray's default is three
minutes; live decoding renews its request every ten seconds."""


def make_trainer(job: worker.Job, machines: Machines, name: str) -> TorchTrainer:
    """Set up one attempt of a run."""
    # We write the checkpoints. Ray Train writes only a marker at every start of its controller, to see whether it can,
    # and would fail to start if storage were away just then.
    nothing_kept = PyFileSystem(FSSpecHandler(fsspec.filesystem("memory")))
    workers, each = machines.workers, machines.per_worker
    if machines.min_workers:
        # By default, Ray Train waits a minute for workers of a node that it does not yet know to be gone.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(ELASTIC_START_SECONDS))
    return TorchTrainer(
        worker.train,
        train_loop_config={"job": job},
        torch_config=TorchConfig(timeout_s=job.collective_seconds),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(machines.min_workers, workers) if machines.min_workers else workers,
            use_gpu=each.gpus > 0,
            resources_per_worker=each.bundle,
            elastic_resize_monitor_interval_s=machines.resize_seconds,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path="ray-train",
            storage_filesystem=nothing_kept,
            callbacks=[_FailureCallback(job.mailbox)],
            worker_runtime_env={"env_vars": environment(machines)},
            failure_config=ray.train.FailureConfig(
                max_failures=0,  # Ray counts over a trainer's whole life; `losses.decide` starts new ones
                controller_failure_limit=-1 if machines.min_workers or machines.decoding.may_grow else START_ATTEMPTS,
            ),
        ),
    )


def collective_seconds(machines: Machines) -> int:
    """Return how long a worker waits for the others: while one of them waits for clips or for storage, all do."""
    patience = machines.decoding.patience_seconds + storage.patience_seconds()
    return math.ceil(60 * machines.collective_minutes + patience)


def environment(machines: Machines) -> dict[str, str]:
    """Return the environment variables of the workers."""
    return {
        "RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S": str(DATA_SHARE_SECONDS),
        # A collective operation that times out must end the process: 3 does so without tidying up first, which may hang
        # on the very link that is broken. If the thread that looks for timeouts hangs itself, another one ends the
        # process after this many seconds.
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
        "TORCH_NCCL_ENABLE_MONITORING": "1",
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": str(math.ceil(60 * machines.collective_minutes)),
    }


class _FailureCallback(ray.train.UserCallback):  # type: ignore[misc]  # Ray's classes are untyped here
    """Runs in the controller and reports the loss of a group of workers."""

    def __init__(self, mailbox: Any) -> None:
        self.mailbox = mailbox

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        self.mailbox.put.remote(Failed(at=time.time()))


def fit(
    make_trainer: Callable[[], TorchTrainer],
    mail: Any,
    ledger: RunLedger,
    longest: float,
    max_failures: int,
    look: Callable[[], None] = lambda: None,
) -> None:
    """Run one trainer after another until one is done, `decide` ends the run, or it has had no workers for `longest`
    seconds. `look` is called regularly and may raise."""
    places, losses = Places(ledger, longest, time.monotonic()), Losses()
    while True:
        commits = ledger.commits
        error = _fit_once(make_trainer, mail, ledger, places, look)
        if error is None:
            return
        lost = what_was_lost(error)
        decision = decide(lost, losses, progress=ledger.commits > commits, max_failures=max_failures)
        if isinstance(decision, End):
            raise explain(error) from error
        losses = decision.losses
        if lost is not Lost.WORKERS:
            if lost is Lost.CONTROLLER:
                ledger(Failed(at=time.time()))
            release(ledger.placement_group)
            places.controller_lost()


def _fit_once(
    make_trainer: Callable[[], TorchTrainer],
    mail: Any,
    ledger: RunLedger,
    places: Places,
    look: Callable[[], None],
) -> BaseException | None:
    """Run a trainer in its own thread and handle its events here. Return what ended it, or None."""
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            make_trainer().fit()
        except BaseException as error:  # passed on to the calling thread
            failure.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    while True:
        running = thread.is_alive()  # read before taking: what was put before the end is then taken after it
        for event in mailbox.take(mail):
            ledger(event)
        ledger.save(time.monotonic())
        if not running:
            return failure[0] if failure else None
        places.look(time.monotonic())
        look()
        time.sleep(TAKE_SECONDS)


def what_was_lost(error: BaseException) -> Lost:
    """Return what was lost when a trainer ended with this error."""
    if isinstance(error, ray.train.WorkerGroupError):
        return Lost.FOR_GOOD if is_lasting(own_error(error)) else Lost.WORKERS
    if not isinstance(error, ray.exceptions.RayActorError | ray.train.ControllerError):
        return Lost.FOR_GOOD
    # A controller that calls a worker that was just killed takes the failure for its own and ends.
    inner = getattr(error, "controller_failure", None)
    causes = (error, inner, getattr(inner, "cause", None))
    return Lost.CONTROLLER if any(isinstance(one, ray.exceptions.RayActorError) for one in causes) else Lost.PLACES


def explain(error: BaseException) -> Exception:
    """Return the project's own error inside what Ray Train raised, or a TrainingError with its last line."""
    own = own_error(error)
    if own is not None:
        return own
    lines = [line.strip() for line in str(_causes(error)[-1]).splitlines() if line.strip()]
    return TrainingError(f"training failed: {lines[-1] if lines else type(error).__name__}")


def own_error(error: BaseException) -> TpnRayError | None:
    """Return the project's own error inside what Ray Train raised, or None."""
    return next((cause for cause in _causes(error) if isinstance(cause, TpnRayError)), None)


def _causes(error: BaseException) -> list[BaseException]:
    """Return the error and all errors inside it, outer ones first."""
    causes = [error]
    for cause in causes:
        inner = [getattr(cause, "cause", None), cause.__cause__, *getattr(cause, "worker_failures", {}).values()]
        causes.extend(one for one in inner if isinstance(one, BaseException) and one not in causes)
    return causes
