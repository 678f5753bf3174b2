"""One training run: TorchTrainer with its workers, data, failures and storage. Runs on the driver or in a Tune trial.

`run` starts the Train controller in a thread and hands every event of the run to its caller, one after the other, in
the calling thread: there the job prints and tracks, and a Tune trial reports.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import fsspec
import ray
import ray.exceptions
import ray.train
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.placement_group import PlacementGroup
from ray.util.state import list_actors, list_placement_groups
from ray.util.state.exception import RayStateApiException

from tpn_ray import lease, mailbox, storage
from tpn_ray.budget import Bad, check_budget
from tpn_ray.clips.manifest import Manifest
from tpn_ray.data import driver as data
from tpn_ray.data.nodes import amounts_of
from tpn_ray.data.plan import Plan
from tpn_ray.data.schedule import Schedule
from tpn_ray.data.worker import ClipSource
from tpn_ray.errors import BudgetError, ConfigError, ResourceError, StorageError, TpnRayError, TrainingError
from tpn_ray.train import bad_record, run_folder, worker
from tpn_ray.train.events import BadVideos, Committed, Diverged, Event, Failed, Notice, Started, Stopped
from tpn_ray.train.goodput import Goodput
from tpn_ray.train.losses import End, Losses, Lost, decide, is_lasting
from tpn_ray.train.machines import GROW_SECONDS, Machines, check_division, check_feasible
from tpn_ray.train.recipe import Recipe, replace_fields, to_plain
from tpn_ray.train.saving import Saving

TAKE_SECONDS = 0.5
START_ATTEMPTS = 5
"""Times that Ray Train may fail to place its workers (60 s each) before a run of fixed size and cluster gives up.
Others only wait by the clock: Ray counts over the whole run, and every node that is lost may cost an attempt."""
COLLECTIVE_SECONDS = 1800
"""How long a worker waits for the others, besides what one of them may wait for storage."""
WAIT_SECONDS = 600.0
"""Longest time without workers on a cluster of fixed size; by default Ray Train waits for ever."""
LOOK_SECONDS, SAY_SECONDS = 5.0, 60.0
"""How often it is looked whether the workers have their places, and after how long without them the user is told."""
ELASTIC_START_SECONDS = 20
DATA_SHARE_SECONDS = 45
"""How long a lost decoding keeps its share of the cluster's CPUs, which the next one has too little without. By default
it is three minutes; a living one asks for its share again every ten seconds."""
SAVE_AGAIN_SECONDS = 30.0
"""Until the next attempt to put bad videos on record, where storage refused one."""
ABANDONED_SECONDS, ABANDONED_LOOKS = 120.0, 3
"""How long after a controller ended it is looked for places without actors, and in how many looks one after the
other they must be seen."""
STATE_SECONDS, MOST_LISTED = 20, 10_000
"""Of a question to Ray's State API."""


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
    ended: str = ""
    """Why the run ended before its last epoch; empty if it did not."""
    clips_per_second: float = 0.0
    """Median over the run of the training speed; 0 where nothing was trained any more."""
    goodput: Goodput
    """Where the time of the workers went, this time."""


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
        clips_per_video=recipe.clip.clips_per_video,
    )


def make_schedule(recipe: Recipe, manifest: Manifest, last_step: int) -> Schedule:
    """All that is read up to `last_step`, which ends an epoch."""
    plan = make_plan(recipe, manifest)
    return Schedule(
        # What lies behind a pause is not read; the order of what comes before does not depend on the number of epochs.
        plan=dataclasses.replace(plan, epochs=last_step // plan.steps_per_epoch),
        validation=len(manifest.select("val")),
        evaluate_every=recipe.loop.evaluate_every_epochs * plan.steps_per_epoch,
    )


def check_resumable(run_uri: str, recipe: Recipe, manifest: Manifest) -> int:
    """The step that a run of this name goes on from (0: new). Refuses another recipe or dataset, with what differs."""
    return run_folder.settle(
        run_uri,
        {
            "recipe": to_plain(recipe),
            "label_sets": {name: list(classes) for name, classes in manifest.label_sets.items()},
            "dataset_version": manifest.version,
        },
    )


def run(
    recipe: Recipe,
    manifest: Manifest,
    machines: Machines,
    *,
    storage_uri: str,
    name: str,
    on_event: Callable[[Event], None],
    saving: Saving | None = None,
    max_bad: Fraction = Fraction(1, 100),
    max_failures: int = 3,
    until_epoch: int = 0,
    start_from: str = "",
    start_epoch: int = 0,
    order_ledger: str = "",
    token: lease.Token | None = None,
    look: Callable[[], None] = lambda: None,
) -> RunResult:
    """Train to the end, going on where a run of this name in this storage stopped.

    With `until_epoch` the run pauses at that epoch, evaluated and with a checkpoint; continued, it ends with the same
    weights, bit for bit, as one that never paused. With `start_from`, a new run begins with the weights, momenta and
    position of that checkpoint, whose settings may have been others as long as the weights fit; where its epochs had
    another number of steps, `start_epoch` says at which epoch of its own this run begins. In `order_ledger`, a folder,
    every worker writes down what it trains on.

    Workers may be lost `max_failures` times in a row without a later checkpoint in between; nodes that the cluster
    takes away do not count. `recipe` has the dataset's number of classes (`recipe_for`).

    The run is written under the lease of `token`, which its holder has for the run or for a campaign around it, and
    `look` raises when it is lost; without one, the lease of the run is taken here.

    Raises TrainingError when training fails for good, or the project's own error that a worker met and the next would
    meet as well; BudgetError when more than the share `max_bad` of the videos are bad, LeaseError when another job
    works on the run, DamagedError when what is there of it is damaged, and whatever `on_event` and `look` raise.
    """
    run_uri = storage.join(storage_uri, name)
    with contextlib.ExitStack() as stack:
        if token is None:
            held = stack.enter_context(lease.held(run_uri, f"run {name}"))
            token, look = held.token, held.look
        begun = check_resumable(run_uri, recipe, manifest)
        plan = make_plan(recipe, manifest)
        last_step = (until_epoch or plan.epochs) * plan.steps_per_epoch
        if last_step > plan.steps:
            raise ConfigError(f"until_epoch={until_epoch} is beyond the {plan.epochs} epochs of the run")
        ledger = _Ledger(manifest, plan, max_bad, on_event, Goodput(begun=time.time()), run_uri)
        ledger.take_up()
        complete = _is_complete(run_uri, begun, last_step, ledger)
        if not complete:
            check_division(machines, recipe)
            check_feasible(machines, ray.cluster_resources(), data.node_labels())
            mail = mailbox.beside_driver()
            job = worker.Job(
                recipe=recipe,
                schedule=make_schedule(recipe, manifest, last_step),
                steps=plan.steps,
                training=_source(recipe, manifest, machines, "train"),
                validation=_source(recipe, manifest, machines, "val"),
                decoding=machines.decoding(share_with=storage_uri),
                label_sets=manifest.label_sets,
                dataset_version=manifest.version,
                run_uri=run_uri,
                token=token,
                saving=saving or Saving(),
                mailbox=mail,
                threads=max(1, int(machines.cpus_per_worker)),
                start_from=start_from,
                start_step=start_epoch * plan.steps_per_epoch,
                order_ledger=order_ledger,
            )
            # Workers that have their places and wait for storage have not yet begun.
            longest = (GROW_SECONDS if machines.may_grow else WAIT_SECONDS) + storage.patience_seconds()
            _fit(lambda: _trainer(job, machines, name), mail, ledger, longest, max_failures, look)
            ledger.save()
            ledger.catch_up(run_uri)
        records = run_folder.read_records(run_uri)
        ledger.goodput.finished(time.time())
        ends = run_folder.ends(run_uri, records)
        for notice in ends.notices:
            ledger(Notice(text=notice))
        if not ends.last:
            raise TrainingError(f"training ended without a checkpoint in {run_uri}")
        return RunResult(
            best=run_folder.checkpoint_uri(run_uri, ends.best),
            last=run_folder.checkpoint_uri(run_uri, ends.last),
            scores=ends.scores,
            ended=records[-1].ended if records else "",
            bad=tuple(ledger.bad.values()),
            trained=not complete,
            clips_per_second=statistics.median(ledger.speeds) if ledger.speeds else 0.0,
            goodput=ledger.goodput,
        )


def _is_complete(run_uri: str, begun: int, last_step: int, ledger: _Ledger) -> bool:
    """Whether nothing is left to train. A last checkpoint that is damaged is set aside, and trained again."""
    records = run_folder.read_records(run_uri)
    if begun < last_step and not (records and records[-1].ended):
        return False
    step, faults = run_folder.newest_whole(run_uri)
    for fault in faults:
        ledger(Notice(text=f"{fault}; it is set aside, and the one before it is used"))
    records = run_folder.read_records(run_uri)
    return step >= last_step or bool(records and records[-1].ended)


def _source(recipe: Recipe, manifest: Manifest, machines: Machines, split: str) -> ray.ObjectRef[ClipSource]:
    return ray.put(
        ClipSource(
            manifest=manifest.select(split),
            clip=recipe.clip,
            augment=recipe.augment,
            seed=recipe.loop.seed,
            developed=not machines.gpus_per_worker,  # GPUs augment faster than the CPUs that decode for them
        )
    )


def _trainer(job: worker.Job, machines: Machines, name: str) -> TorchTrainer:
    # Checkpoints are ours, and Ray Train puts down nothing but a mark that it can write, at every start of its
    # controller: in storage that is away just then, the start would fail.
    nothing_kept = PyFileSystem(FSSpecHandler(fsspec.filesystem("memory")))
    per_worker = {"CPU": machines.cpus_per_worker, **amounts_of(machines.worker_resources, "worker_resources")}
    if machines.gpus_per_worker:
        per_worker["GPU"] = machines.gpus_per_worker
    workers = machines.workers
    if machines.min_workers:
        # By default Ray Train waits a minute for workers of a node that it does not yet know to be gone.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(ELASTIC_START_SECONDS))
    return TorchTrainer(
        worker.train,
        train_loop_config={"job": job},
        torch_config=TorchConfig(timeout_s=COLLECTIVE_SECONDS + int(storage.patience_seconds())),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(machines.min_workers, workers) if machines.min_workers else workers,
            use_gpu=machines.gpus_per_worker > 0,
            resources_per_worker=per_worker,
            elastic_resize_monitor_interval_s=machines.resize_seconds,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path="ray-train",
            storage_filesystem=nothing_kept,
            callbacks=[_FailureCallback(job.mailbox)],
            worker_runtime_env={"env_vars": {"RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S": str(DATA_SHARE_SECONDS)}},
            failure_config=ray.train.FailureConfig(
                max_failures=0,  # Ray counts over the whole life of a trainer; `losses.decide` begins new ones
                controller_failure_limit=-1 if machines.min_workers or machines.may_grow else START_ATTEMPTS,
            ),
        ),
    )


class _FailureCallback(ray.train.UserCallback):  # type: ignore[misc]  # Ray's classes are untyped here
    """Runs in the controller: says when a group of workers is lost."""

    def __init__(self, mailbox: Any) -> None:
        self.mailbox = mailbox

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        self.mailbox.put.remote(Failed(at=time.time()))


@dataclass
class _Ledger:
    """Books bad videos, time and commits of a run, holds it to its budget, and passes every event on."""

    manifest: Manifest
    plan: Plan
    max_bad: Fraction
    on_event: Callable[[Event], None]
    goodput: Goodput
    run_uri: str
    bad: dict[str, Bad] = field(default_factory=dict)
    """By id; those on record, and those found since."""
    speeds: list[float] = field(default_factory=list)
    committed: int = 0
    """The last step on record that was passed on."""
    commits: int = 0
    """Checkpoints that were committed so far, this time."""
    placement_group: str = ""
    """Of the workers that run."""
    save_at: float = math.inf
    """When `bad` is to be put on record, by the monotonic clock."""
    rows: dict[str, list[int]] = field(default_factory=dict)
    """Rows of the manifest by split, as far as they were asked for."""
    noticed: dict[str, str] = field(default_factory=dict)
    """What notices are about -> the last one."""

    def __call__(self, event: Event) -> None:
        match event:
            case Notice() if event.about:
                if self.noticed.get(event.about) == event.text:
                    return
                self.noticed[event.about] = event.text
            case Started():
                self.goodput.started(event.at, event.workers)
                self.committed = max(self.committed, event.step)
                self.placement_group = event.placement_group
            case Failed():
                self.goodput.failed(event.at)
            case Committed():
                if event.step <= self.committed:
                    return
                self.committed, self.commits = event.step, self.commits + 1
                self.goodput.committed(event.history)
                self.speeds += [metrics.values["clips_per_second"] for metrics in event.history]
            case BadVideos():
                self._book(event)
        self.on_event(event)
        if isinstance(event, Diverged):
            self._stop(event)
        if isinstance(event, Stopped):
            raise event.error
        if isinstance(event, BadVideos):  # not before: what is on record may have been repaired since
            self._hold_to_budget()

    def catch_up(self, run_uri: str) -> None:
        """Pass on what is on record but was lost on its way."""
        there = run_folder.committed_steps(run_uri)
        for record in run_folder.read_records(run_uri, after=self.committed):
            self(Committed.of(record, run_folder.place_of(run_uri, record.step, there)))

    def take_up(self) -> None:
        """Begin with the bad videos that are on record."""
        self.bad, fault = bad_record.read(self.run_uri, self.manifest.version)
        if fault:
            self(Notice(text=fault))

    def save(self, now: float = math.inf) -> None:
        """Put bad videos that are new on record. Storage that refuses is asked again later, and ends no run: while
        it runs (`now` is given), events must not wait for storage."""
        if self.save_at == math.inf or now < self.save_at:
            return
        try:
            with storage.patience(math.inf if now == math.inf else 0.0):
                bad_record.write(self.run_uri, self.manifest.version, self.bad)
        except StorageError:
            self.save_at = time.monotonic() + SAVE_AGAIN_SECONDS
        else:
            self.save_at = math.inf

    def _book(self, event: BadVideos) -> None:
        rows, manifest = self._rows(event.split), self.manifest
        for row, reason, message in event.found:
            id, about = manifest.ids[rows[row]], (manifest.uris[rows[row]], reason, message)
            if self.bad.get(id) != about:
                self.bad[id] = about
                self.save_at = min(self.save_at, time.monotonic())

    def _rows(self, split: str) -> list[int]:
        """Of a split; looked for once, since a dataset has millions and every bad video asks."""
        if split not in self.rows:
            splits = self.manifest.splits
            self.rows[split] = list(itertools.compress(range(len(splits)), map(split.__eq__, splits)))
        return self.rows[split]

    def _stop(self, event: Diverged) -> None:
        samples, rows = self.plan.slot(event.number, 1, event.step).samples, self._rows("train")
        raise TrainingError(
            f"the loss is {event.loss} at step {event.step}, micro-batch {event.number}; the last checkpoint is kept. "
            "Try a lower --optim.lr, a warm-up, or a smaller --optim.clip-norm. The videos were:\n  "
            + "\n  ".join(self.manifest.uris[rows[sample]] for sample in samples)
        )

    def _hold_to_budget(self) -> None:
        remedy = "the same command goes on from the last checkpoint"
        try:
            check_budget(self.bad, len(self.manifest), self.max_bad, self.bad.values(), remedy)
        except BudgetError:
            self.save()
            raise


def _fit(
    make_trainer: Callable[[], TorchTrainer],
    mail: Any,
    ledger: _Ledger,
    longest: float,
    max_failures: int,
    look: Callable[[], None] = lambda: None,
) -> None:
    """Run one trainer after the other, until one is done, `decide` ends the run, or it had no workers for the `longest`
    time, in seconds. `look` is called now and then, and may raise."""
    places, losses = _Places(ledger, longest, time.monotonic()), Losses()
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
    ledger: _Ledger,
    places: _Places,
    look: Callable[[], None],
) -> BaseException | None:
    """Run a trainer in a thread of its own and handle its events here; what ended it, or None."""
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
    """What ended a trainer with this error."""
    if isinstance(error, ray.train.WorkerGroupError):
        return Lost.FOR_GOOD if is_lasting(own_error(error)) else Lost.WORKERS
    if not isinstance(error, ray.exceptions.RayActorError | ray.train.ControllerError):
        return Lost.FOR_GOOD
    # A controller ends by itself where it calls a worker that has just been killed: it takes that for its own mistake.
    inner = getattr(error, "controller_failure", None)
    causes = (error, inner, getattr(inner, "cause", None))
    return Lost.CONTROLLER if any(isinstance(one, ray.exceptions.RayActorError) for one in causes) else Lost.PLACES


class _Places:
    """Watches whether the workers have places in the cluster: without any, Ray Train waits for ever, and in silence."""

    def __init__(self, ledger: _Ledger, longest: float, now: float) -> None:
        self._ledger, self._longest = ledger, longest
        self._placed = self._looked = now
        self._told = False
        self._lost = -math.inf
        self._abandoned = Counter[str]()

    def controller_lost(self) -> None:
        """Look for places that nobody holds: of workers that had not begun when their controller ended."""
        self._lost = time.monotonic()

    def look(self, now: float) -> None:
        """Called often. Tells the user of a wait, and raises ResourceError when it was the longest."""
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        if now - self._lost < ABANDONED_SECONDS:
            self._free_abandoned()
        if _is_placed(self._ledger.placement_group):
            self._placed, self._told = now, False
        elif now - self._placed > self._longest:
            raise ResourceError(
                f"the cluster gave the run no workers for {self._longest / 60:.0f} minutes; it has "
                f"{_amounts(ray.cluster_resources())}. The same command with the same --name goes on"
            )
        elif now - self._placed > SAY_SECONDS and not self._told:
            self._told = True
            self._ledger(Notice(text=f"waits for workers; the cluster has {_amounts(ray.cluster_resources())}"))

    def _free_abandoned(self) -> None:
        """Places without an actor in several looks; those of other trials get theirs within moments."""
        without = _without_actors()
        self._abandoned = Counter({group: self._abandoned[group] + 1 for group in without})
        for group, looks in self._abandoned.items():
            if looks == ABANDONED_LOOKS:
                release(group)


def _is_placed(placement_group: str) -> bool:
    """Whether the workers that began last are still there."""
    if not placement_group:
        return False
    group = PlacementGroup(ray.PlacementGroupID(bytes.fromhex(placement_group)))
    state: str = ray.util.placement_group_table(group).get("state", "")
    return state == "CREATED"


def _amounts(resources: Mapping[str, float]) -> str:
    hidden = (":", "_group_", "memory")  # addresses, what a placement group holds, bytes
    shown = {name: amount for name, amount in resources.items() if not any(part in name for part in hidden)}
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(shown.items())) or "no CPUs"


def release(placement_group: str) -> None:
    """Free what the workers of a dead controller held: by default it stays until the job ends.

    Ray Train has a helper for it, which needs the dashboard, and knows of no workers that had not begun.
    """
    if placement_group:
        group = PlacementGroup(ray.PlacementGroupID(bytes.fromhex(placement_group)))
        with contextlib.suppress(ray.exceptions.RayError, ValueError):  # it may be gone already
            ray.util.remove_placement_group(group)


def _without_actors() -> set[str]:
    """This job's placement groups that are given and hold no actor; none where Ray's State API does not answer."""
    job = ray.get_runtime_context().get_job_id()
    groups_of, actors_of = (
        [("creator_job_id", "=", job), ("state", "=", "CREATED")],
        [("job_id", "=", job), ("state", "!=", "DEAD")],
    )
    try:
        groups = list_placement_groups(filters=groups_of, limit=MOST_LISTED, timeout=STATE_SECONDS)
        actors = list_actors(filters=actors_of, detail=True, limit=MOST_LISTED, timeout=STATE_SECONDS)
    except (RayStateApiException, ConnectionError):
        return set()
    held = {actor.placement_group_id for actor in actors}
    return {group.placement_group_id for group in groups if group.placement_group_id not in held}


def explain(error: BaseException) -> Exception:
    """The project's own error inside what Ray Train raised, or a TrainingError with its last line."""
    own = own_error(error)
    if own is not None:
        return own
    lines = [line.strip() for line in str(_causes(error)[-1]).splitlines() if line.strip()]
    return TrainingError(f"training failed: {lines[-1] if lines else type(error).__name__}")


def own_error(error: BaseException) -> TpnRayError | None:
    """The project's own error inside what Ray Train raised."""
    return next((cause for cause in _causes(error) if isinstance(cause, TpnRayError)), None)


def _causes(error: BaseException) -> list[BaseException]:
    """The error and all that are inside it, the outer ones first."""
    causes = [error]
    for cause in causes:
        inner = [getattr(cause, "cause", None), cause.__cause__, *getattr(cause, "worker_failures", {}).values()]
        causes.extend(one for one in inner if isinstance(one, BaseException) and one not in causes)
    return causes
