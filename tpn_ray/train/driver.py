"""One training run: TorchTrainer with its workers, data, failures and storage. Runs on the driver or in a Tune trial.

`run` starts the Train controller in a thread and hands every event of the run to its caller, one after the other, in
the calling thread: there the job prints and tracks, and a Tune trial reports.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.train
from ray.train.torch import TorchTrainer

from tpn_ray import checkpoint as checkpoints
from tpn_ray import storage
from tpn_ray.clips.manifest import Manifest
from tpn_ray.data import driver as data
from tpn_ray.data.plan import Plan
from tpn_ray.data.worker import ClipSource
from tpn_ray.errors import (
    BudgetError,
    CheckpointError,
    ConfigError,
    NotFoundError,
    ResourceError,
    TpnRayError,
    TrainingError,
)
from tpn_ray.train import worker
from tpn_ray.train.events import BadVideos, Committed, Event, Mailbox, StepMetrics
from tpn_ray.train.recipe import Recipe, difference, replace_fields, to_plain

TAKE_SECONDS = 0.5
START_ATTEMPTS, GROWING_ATTEMPTS = 5, 30
"""Times that Ray Train may fail to place its workers (60 s each) before the run gives up; by default it never does."""
ANSWER_SECONDS = 120
"""Longest wait for the cluster's answer to a question that takes it milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Machines:
    """What a run takes of the cluster."""

    workers: int = 2
    """Ray Train workers; each is one process with one copy of the network."""

    cpus_per_worker: float = 1.0
    """CPUs that each worker holds, and its number of torch threads. Leave some for decoding."""

    gpus_per_worker: float = 0.0
    """GPUs that each worker holds; 0 trains on CPUs."""

    decode_cpus: float = 1.0
    """CPUs that each decoding task holds."""

    decode_tasks: int = 0
    """Most decoding tasks at once; 0: as many as fit."""

    share_clips_gb: float = 0.0
    """Local disk of each node for decoded clips that other trials of a campaign want too; 0 shares nothing."""

    may_grow: bool = False
    """Set it on an autoscaling cluster: what its nodes of the moment cannot give is then waited for, for half an hour,
    and not refused."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"workers={self.workers} must be at least 1")
        if self.cpus_per_worker < 0 or self.gpus_per_worker < 0 or self.decode_cpus <= 0 or self.decode_tasks < 0:
            raise ConfigError("resources must not be negative, and decode_cpus must be above 0")
        if self.share_clips_gb < 0:
            raise ConfigError(f"share_clips_gb={self.share_clips_gb} must not be negative")


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended."""

    best: str
    """URI of the checkpoint with the highest validation top-1."""
    last: str
    scores: dict[str, float]
    """Of the best checkpoint."""
    bad: tuple[tuple[str, str, str], ...] = ()
    """Videos that were not usable: (uri, reason, message)."""
    trained: bool = True
    """False where the run had been complete before."""
    clips_per_second: float = 0.0
    """Median over the run of the training speed; 0 where nothing was trained any more."""


def recipe_for(recipe: Recipe, manifest: Manifest) -> Recipe:
    """The recipe with as many classes as the dataset has."""
    sizes = tuple(len(classes) for classes in manifest.label_sets.values())
    return replace_fields(recipe, {"model.classes": sizes[0] if len(sizes) == 1 else sizes})


def make_plan(recipe: Recipe, manifest: Manifest) -> Plan:
    """The plan of the training split."""
    loop, train = recipe.loop, manifest.select("train")
    return Plan(
        samples=len(train),
        groups=train.group_sizes,
        seed=loop.seed,
        epochs=loop.epochs,
        batch_clips=loop.batch_clips,
        micro_batch_clips=loop.micro_batch_clips,
    )


def check_feasible(machines: Machines, recipe: Recipe, total: dict[str, float]) -> None:
    """Refuse what the cluster, with resources `total`, can never start: Ray Train would wait for ever."""
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    shares = recipe.loop.micro_batches_per_step
    if machines.workers > shares:
        raise ResourceError(
            f"{machines.workers} workers cannot share the {shares} micro-batches of a step: "
            f"use at most {shares} workers, or smaller --loop.micro-batch-clips"
        )
    if machines.may_grow:
        return
    needed = machines.workers * machines.cpus_per_worker + machines.decode_cpus
    if needed > cpus:
        raise ResourceError(
            f"too few CPUs: {machines.workers} workers of {machines.cpus_per_worker:g} and one decoding task of "
            f"{machines.decode_cpus:g} need {needed:g}, the cluster has {cpus:g}; use fewer --workers, smaller "
            f"--cpus-per-worker, a larger cluster, or --may-grow if it adds nodes on demand"
        )
    if machines.workers * machines.gpus_per_worker > gpus:
        raise ResourceError(
            f"too few GPUs: {machines.workers} workers of {machines.gpus_per_worker:g} need "
            f"{machines.workers * machines.gpus_per_worker:g}, the cluster has {gpus:g}; use fewer --workers, "
            "or --may-grow if it adds nodes on demand"
        )


def last_checkpoint(run_uri: str) -> str | None:
    """The checkpoint that Ray Train committed last, or None for a run that has none."""
    try:
        snapshot = json.loads(storage.read_bytes(storage.join(run_uri, "checkpoint_manager_snapshot.json")))
    except NotFoundError:
        return None
    latest = snapshot["latest_checkpoint_result"]
    return storage.join(run_uri, latest["checkpoint_dir_name"]) if latest else None


def check_resumable(run_uri: str, recipe: Recipe, manifest: Manifest) -> int:
    """The step that a run of this name goes on from (0: new). Refuses another recipe or dataset, with what differs."""
    last = last_checkpoint(run_uri)
    if last is None:
        return 0
    saved = checkpoints.load(last)
    changed = difference(saved.recipe, to_plain(recipe))
    if saved.dataset_version != manifest.version:
        changed.append(f"dataset version: {saved.dataset_version} then, {manifest.version} now")
    if changed:
        raise CheckpointError(
            f"{run_uri} is a run with other settings, and would not be the same run if it went on:\n  "
            + "\n  ".join(changed)
            + "\nSet them back, or choose another --name"
        )
    return saved.step


def run(
    recipe: Recipe,
    manifest: Manifest,
    machines: Machines,
    *,
    storage_uri: str,
    name: str,
    on_event: Callable[[Event], None],
    max_bad: float = 0.01,
    max_failures: int = 3,
    keep: int = 2,
    until_epoch: int = 0,
    start_from: str = "",
) -> RunResult:
    """Train to the end, going on where a run of this name in this storage stopped.

    With `until_epoch` the run pauses at that epoch, evaluated and with a checkpoint; continued, it ends with the same
    weights, bit for bit, as one that never paused. With `start_from`, a new run begins with the weights, momenta and
    position of that checkpoint, whose settings may have been others as long as the weights fit.

    `recipe` has the dataset's number of classes (`recipe_for`). Raises TrainingError when training fails for good,
    BudgetError when more than the share `max_bad` of the videos are bad, and whatever `on_event` raises.
    """
    run_uri = storage.join(storage_uri, name)
    begun = check_resumable(run_uri, recipe, manifest)
    plan = make_plan(recipe, manifest)
    ledger = _Ledger(manifest, max_bad, on_event)
    last_step = (until_epoch or plan.epochs) * plan.steps_per_epoch
    if last_step > plan.steps:
        raise ConfigError(f"until_epoch={until_epoch} is beyond the {plan.epochs} epochs of the run")
    if begun < last_step:
        check_feasible(machines, recipe, ray.cluster_resources())
        mailbox = _mailbox_here()
        job = worker.Job(
            recipe=recipe,
            plan=plan,
            label_sets=manifest.label_sets,
            dataset_version=manifest.version,
            run_uri=run_uri,
            mailbox=mailbox,
            threads=max(1, int(machines.cpus_per_worker)),
            last_step=last_step,
            start_from=start_from,
        )
        trainer = _trainer(job, manifest, machines, storage_uri, name, max_failures, keep)
        _fit(trainer, mailbox, ledger)
    last = last_checkpoint(run_uri)
    if last is None:
        raise TrainingError(f"training ended without a checkpoint in {run_uri}")
    best, scores = best_checkpoint(run_uri)
    return RunResult(
        best=best,
        last=last,
        scores=scores,
        bad=tuple(ledger.bad.values()),
        trained=begun < last_step,
        clips_per_second=statistics.median(ledger.speeds) if ledger.speeds else 0.0,
    )


def best_checkpoint(run_uri: str) -> tuple[str, dict[str, float]]:
    """The kept checkpoint with the highest validation top-1 (the later one of equals) and its scores."""
    snapshot = json.loads(storage.read_bytes(storage.join(run_uri, "checkpoint_manager_snapshot.json")))
    results = snapshot["checkpoint_results"]
    best = max(results, key=lambda r: (r["metrics"]["val_top1"], r["metrics"]["step"]))
    scores = {key: value for key, value in best["metrics"].items() if key.startswith("val_")}
    return storage.join(run_uri, best["checkpoint_dir_name"]), scores


def _trainer(
    job: worker.Job,
    manifest: Manifest,
    machines: Machines,
    storage_uri: str,
    name: str,
    max_failures: int,
    keep: int,
) -> TorchTrainer:
    filesystem, path = storage.filesystem(storage_uri, attempts=storage.MAX_ATTEMPTS)
    per_worker = {"CPU": machines.cpus_per_worker}
    if machines.gpus_per_worker:
        per_worker["GPU"] = machines.gpus_per_worker
    return TorchTrainer(
        worker.train,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=machines.workers, use_gpu=machines.gpus_per_worker > 0, resources_per_worker=per_worker
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            callbacks=[_CommitCallback(job.mailbox, job.run_uri)],
            failure_config=ray.train.FailureConfig(
                max_failures=max_failures,
                controller_failure_limit=GROWING_ATTEMPTS if machines.may_grow else START_ATTEMPTS,
            ),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=keep, checkpoint_score_attribute="val_top1", checkpoint_score_order="max"
            ),
        ),
        datasets=_datasets(job, manifest, machines),
        dataset_config=ray.train.DataConfig(
            datasets_to_split="all",
            execution_options={split: data.execution_options() for split in ("train", "val")},
        ),
    )


def _datasets(job: worker.Job, manifest: Manifest, machines: Machines) -> dict[str, Callable[[], ray.data.Dataset]]:
    """Called in the controller whenever a group of workers starts: what is left of the plan by then."""
    recipe, run_uri, start_from = job.recipe, job.run_uri, job.start_from
    # What lies behind a pause is not decoded; the order of what comes before does not depend on the number of epochs.
    plan = dataclasses.replace(job.plan, epochs=job.last_step // job.plan.steps_per_epoch)
    resources = data.DecodeResources(
        cpus=machines.decode_cpus,
        tasks=machines.decode_tasks,
        share_bytes=int(machines.share_clips_gb * 1e9),
        share_with=storage.parent(run_uri),
    )
    sources = {
        split: ray.put(
            ClipSource(
                manifest=manifest.select(split),
                clip=recipe.clip,
                augment=recipe.augment,
                seed=recipe.loop.seed,
                developed=not machines.gpus_per_worker,  # GPUs augment faster than the CPUs that decode for them
            )
        )
        for split in ("train", "val")
    }
    videos = len(manifest.select("val"))

    def train() -> ray.data.Dataset:
        last = last_checkpoint(run_uri) or start_from
        first_step = checkpoints.load_step(last) if last else 0
        return data.training_clips(sources["train"], plan, machines.workers, first_step, resources)

    def val() -> ray.data.Dataset:
        batch = recipe.loop.micro_batch_clips
        return data.evaluation_clips(sources["val"], videos, batch, machines.workers, resources)

    return {"train": train, "val": val}


class _CommitCallback(ray.train.UserCallback):  # type: ignore[misc]  # Ray's classes are untyped here
    """Runs in the controller: passes on what became durable."""

    def __init__(self, mailbox: Any, run_uri: str) -> None:
        self.mailbox, self.run_uri = mailbox, run_uri

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if checkpoint is None:
            return
        first = metrics[0]
        self.mailbox.put.remote(
            Committed(
                step=first["step"],
                epoch=first["epoch"],
                checkpoint=storage.join(self.run_uri, Path(checkpoint.path).name),
                scores={key: value for key, value in first.items() if key.startswith("val_")},
                history=tuple(StepMetrics(step=step, values=values) for step, values in first["history"]),
            )
        )


@dataclass
class _Ledger:
    """Books the bad videos of a run and holds it to its budget; passes every event on."""

    manifest: Manifest
    max_bad: float
    on_event: Callable[[Event], None]
    bad: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    speeds: list[float] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Committed):
            self.speeds += [metrics.values["clips_per_second"] for metrics in event.history]
        if isinstance(event, BadVideos):
            uris = self.manifest.select(event.split).uris
            new = {uris[row]: (uris[row], reason, message) for row, reason, message in event.found}
            self.bad.update(new)
        self.on_event(event)
        allowed = int(self.max_bad * len(self.manifest))
        if len(self.bad) > allowed:
            listed = "\n  ".join(f"{uri}: {reason}: {message}" for uri, reason, message in list(self.bad.values())[:5])
            raise BudgetError(
                f"{len(self.bad)} of {len(self.manifest)} videos are bad, the budget allows {allowed}; for example\n"
                f"  {listed}\nRepair or remove them, or raise --max-bad (now {self.max_bad:g})"
            )


def _mailbox_here() -> Any:
    """The mailbox lives on the driver's node, so that losing another node loses no events."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    return ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()


def _fit(trainer: TorchTrainer, mailbox: Any, handle: Callable[[Event], None]) -> None:
    """Run the trainer in a thread of its own and handle its events here until it is done."""
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # passed on to the calling thread
            failure.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    while True:
        running = thread.is_alive()  # read before taking: what was put before the end is then taken after it
        for event in _taken(mailbox):
            handle(event)
        if not running:
            break
        time.sleep(TAKE_SECONDS)
    if failure:
        raise explain(failure[0]) from failure[0]


def _taken(mailbox: Any) -> Sequence[Event]:
    try:
        events: Sequence[Event] = ray.get(mailbox.take.remote(), timeout=ANSWER_SECONDS)
    except ray.exceptions.RayError as error:
        raise ResourceError(
            f"the cluster does not answer any more ({type(error).__name__}); the same command with the same --name "
            "goes on from the last checkpoint when it does"
        ) from error
    return events


def explain(error: BaseException) -> Exception:
    """The project's own error inside what Ray Train raised, or a TrainingError with its last line."""
    causes: list[BaseException] = [error]
    for cause in causes:
        inner = [getattr(cause, "cause", None), cause.__cause__, *getattr(cause, "worker_failures", {}).values()]
        causes.extend(one for one in inner if isinstance(one, BaseException) and one not in causes)
    for cause in causes:
        if isinstance(cause, TpnRayError):
            return cause
    lines = [line.strip() for line in str(causes[-1]).splitlines() if line.strip()]
    return TrainingError(f"training failed: {lines[-1] if lines else type(error).__name__}")
