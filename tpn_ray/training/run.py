"""One training run, from its name to its result. Runs on the driver or in a Tune trial.

`train` starts the Train controller in a thread and hands every event of the run to its caller, one after another, in
the calling thread, where the job prints and tracks them or a Tune trial reports them.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import ray

from tpn_ray import lease, mailbox, output, storage
from tpn_ray.data import dataset as data
from tpn_ray.data.share import Sharing
from tpn_ray.data.tasks import ClipSource
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import ConfigError, TrainingError
from tpn_ray.recipe import Recipe
from tpn_ray.resources import GROW_SECONDS
from tpn_ray.score import NAMES
from tpn_ray.training import origin, run_folder, worker
from tpn_ray.training.accounting import RunLedger
from tpn_ray.training.events import Event, Notice
from tpn_ray.training.gauges import RunGauges
from tpn_ray.training.goodput import Goodput
from tpn_ray.training.machines import Machines, check_division, check_feasible
from tpn_ray.training.run_plan import check_resumable, make_plan, make_schedule
from tpn_ray.training.saving import Saving
from tpn_ray.training.trainer import collective_seconds, fit, make_trainer

WAIT_SECONDS = 600.0
"""Longest time without workers on a cluster of fixed size. By default, Ray Train waits forever."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended."""

    best: str
    """URI of the checkpoint with the highest validation score."""
    last: str
    scores: dict[str, float]
    """Scores of the best checkpoint."""
    bad: tuple[tuple[str, str, str], ...] = ()
    """Unusable videos: (uri, reason, message)."""
    trained: bool = True
    """False if the run was already complete."""
    ended: str = ""
    """Why the run ended before its last epoch; empty if it did not."""
    clips_per_second: float = 0.0
    """Median training speed over the run; 0 if nothing was left to train."""
    peak_megabytes: float = 0.0
    """Largest memory of any worker in this attempt, on its GPU if it has one; 0 if nothing was left to train."""
    goodput: Goodput
    """Where the workers' time went in this attempt."""

    def _repr_html_(self) -> str:
        """Show the result in a notebook."""
        shares = {name: f"{said} of the best checkpoint" for name, said in NAMES.items()} | {"val_top5": "top-5"}
        rows = [(name, f"{self.scores[key]:.1%}") for key, name in shares.items() if key in self.scores]
        rows += [("best checkpoint", self.best), ("last checkpoint", self.last)]
        rows += [("clips per second", f"{self.clips_per_second:.0f}")] if self.clips_per_second else []
        rows += [("ended early", self.ended)] if self.ended else []
        return output.html_table([*rows, ("videos that could not be used", str(len(self.bad)))])


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """The part of a run to train. Default: all of it."""

    until_epoch: int = 0
    """Epoch at which the run pauses, evaluated and with a checkpoint; 0: its end. When resumed, it ends with the same
    weights, bit for bit, as a run that never paused."""
    start_from: str = ""
    """Checkpoint whose weights, momenta, and position a new run starts with. Its settings may differ as long as the
    weights fit."""
    start_epoch: int = 0
    """Epoch at which such a run starts, if the epochs of `start_from` had a different number of steps."""
    extends: str = ""
    """Run whose last checkpoint `start_from` is, if the run is a longer version of it; remembered in the run's
    folder."""


def train(
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
    stretch: Stretch | None = None,
    data: str = "",
    order_ledger: str = "",
    token: lease.Token | None = None,
    look: Callable[[], None] = lambda: None,
) -> RunResult:
    """Train a stretch of a run, resuming where a run of this name in this storage stopped.

    `recipe` has the dataset's number of classes (`recipe_for`). Workers may be lost `max_failures` times in a row
    without a new checkpoint in between; nodes that the cluster takes away do not count. `data` is where the dataset
    is, which the run's folder remembers. If `order_ledger` names a folder, every worker records there what it trains
    on.

    The run is written under the lease of `token`, which the caller holds for the run or for the campaign around it, and
    `look` raises when that lease is lost. Without a token, the run's own lease is taken here.

    Raises TrainingError when training fails for good; the project's own error if a worker met one that the next workers
    would also meet; BudgetError when more than the share `max_bad` of the videos are bad; LeaseError when another job
    works on the run; DamagedError when what is stored of it is damaged; and whatever `on_event` and `look` raise.
    """
    run_uri, stretch = storage.join(storage_uri, name), stretch or Stretch()
    with contextlib.ExitStack() as stack:
        if token is None:
            held = stack.enter_context(lease.held(run_uri, f"run {name}"))
            token, look = held.token, held.look
        begun = check_resumable(run_uri, recipe, manifest, stretch.extends)
        plan = make_plan(recipe, manifest)
        if stretch.until_epoch > plan.epochs:
            raise ConfigError(f"until_epoch={stretch.until_epoch} is beyond the {plan.epochs} epochs of the run")
        last_step = plan.first_step(stretch.until_epoch or plan.epochs)
        gauges = RunGauges(name)
        stack.callback(gauges.over)

        def tell(event: Event) -> None:
            gauges(event, ledger.goodput.seconds, (reason for _, reason, _ in ledger.bad.values()))
            on_event(event)

        ledger = RunLedger(manifest, plan, max_bad, tell, Goodput(begun=time.time()), run_uri)
        ledger.take_up()
        complete = is_complete(run_uri, begun, last_step, ledger)
        if not complete:
            check_machines(machines, recipe)
            trained = origin.current(machines, data, stretch.start_from, stretch.start_epoch)
            origin.write(run_uri, trained, token)
            mail = mailbox.beside_driver()
            job = worker.Job(
                recipe=recipe,
                schedule=make_schedule(recipe, manifest, last_step),
                steps=plan.steps,
                training=_source(recipe, manifest, machines, "train"),
                validation=_source(recipe, manifest, machines, "val"),
                decoding=machines.decoding,
                sharing=Sharing(limit_bytes=int(machines.share_clips_gb * 1e9), among=storage_uri),
                label_sets=manifest.label_sets,
                dataset_version=manifest.version,
                run_uri=run_uri,
                token=token,
                saving=saving or Saving(),
                mailbox=mail,
                threads=machines.per_worker.threads,
                collective_seconds=collective_seconds(machines),
                start_from=stretch.start_from,
                start_step=plan.first_step(stretch.start_epoch),
                order_ledger=order_ledger,
            )
            # Workers that are placed but wait for storage have not started yet.
            longest = (GROW_SECONDS if machines.decoding.may_grow else WAIT_SECONDS) + storage.patience_seconds()
            fit(lambda: make_trainer(job, machines, name), mail, ledger, longest, max_failures, look)
            ledger.save()
            ledger.catch_up(run_uri)
        return _result(run_uri, ledger, trained=not complete)


def check_machines(machines: Machines, recipe: Recipe) -> None:
    """Raise ResourceError or ConfigError for what the connected cluster can never start."""
    check_division(machines, recipe)
    check_feasible(machines, ray.cluster_resources(), data.node_labels())


def _result(run_uri: str, ledger: RunLedger, *, trained: bool) -> RunResult:
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
        trained=trained,
        clips_per_second=statistics.median(ledger.speeds) if ledger.speeds else 0.0,
        peak_megabytes=ledger.peak_megabytes,
        goodput=ledger.goodput,
    )


def is_complete(run_uri: str, begun: int, last_step: int, ledger: RunLedger) -> bool:
    """Return whether nothing is left to train. A damaged last checkpoint is set aside and trained again."""
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
            manifest=manifest.select(split).showing(recipe.clip.modality),
            clip=recipe.clip,
            augment=recipe.augment,
            seed=recipe.loop.seed,
            repeats=recipe.loop.class_balance != "none",
            developed=not machines.per_worker.gpus,  # GPUs augment faster than the CPUs that decode for them
        )
    )
