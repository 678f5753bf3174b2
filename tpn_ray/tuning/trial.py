"""One trial: sample -> recipe -> its own Ray Train run. Runs in a Tune trial.

Every evaluation is in the journal before anything decides on it, and the run is named after the trial, so that a
restarted trial resumes from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from ray import tune

from tpn_ray import storage, tracking
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import CheckpointError, ConfigError, TpnRayError, TrackingError, TrainingError
from tpn_ray.lease import Token
from tpn_ray.progress import track
from tpn_ray.recipe import Recipe, flat, replace_fields, to_plain
from tpn_ray.score import called
from tpn_ray.tracking import TrackedRun
from tpn_ray.training import run_folder
from tpn_ray.training.events import Committed, Event, Notice, Started
from tpn_ray.training.machines import Machines
from tpn_ray.training.placement import release
from tpn_ray.training.run import Stretch, train
from tpn_ray.training.saving import Saving
from tpn_ray.tuning.fidelity import Fidelity
from tpn_ray.tuning.journal import Held, Journal, Kind, Point, Transition, Trial
from tpn_ray.tuning.space import Sample, apply

TOLD_AGAIN = "told_again"
"""Set in reports to Tune of what the journal had before this process started."""
TRIALS_OWN = (TrainingError, ConfigError, CheckpointError)
"""Errors that belong to one trial, which is then a row with its reason; others end the campaign, which can resume."""


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """What all trials have in common."""

    recipe: Recipe
    manifest: Manifest
    machines: Machines
    uri: str
    """Folder of the campaign; each trial's run is a folder below it."""
    name: str
    tracking_uri: str
    experiment: str
    parent_run: str = ""
    """MLflow run of the campaign, above those of its trials."""
    max_bad: Fraction
    session: str
    """Unique name of the driver process."""
    data: str = ""
    """Where the dataset is; the trials' runs remember it."""
    fidelity: Fidelity = field(default_factory=Fidelity)
    """What trials get less of at the lower rungs."""
    token: Token | None = None
    """Token of the campaign's lease, under which its trials are also written; without one, each run takes its own."""

    @property
    def journal(self) -> Journal:
        return Journal(uri=self.uri, token=self.token)

    def recipe_at(self, sample: Sample, rung: int) -> Recipe:
        """Return the recipe of a sample as it is trained up to a rung."""
        return replace_fields(apply(self.recipe, sample), self.fidelity.changes(rung))


def run_trial(config: dict[str, Any], campaign: Campaign, mail: Any, keeps_all: bool) -> None:
    """Train trial `number` up to epoch `until` in a Tune trial, with a settings `sample`.

    Every evaluation is a report, which may end this process at once; that of the last epoch comes when the workers are
    gone. What the journal already has is reported first, so that a scheduler without memory decides on it again. Each
    report's checkpoint says where ours is: a trial that continues it, with the same settings or others, starts there.
    """
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    sample, until = config["sample"], min(config["until"], apply(campaign.recipe, config["sample"]).loop.epochs)
    known = campaign.journal.read(config["number"])
    if known is None:
        raise CheckpointError(f"{campaign.uri} has no record of trial {config['number']}, which was written before")
    release(known.placement_group)  # what it held when it was paused or lost its process
    pointer = _pointer()
    trial, stretch, rung = _resumed(campaign, known, sample, until, pointer)
    if _is_due(trial, until):
        trial = recovered(campaign.journal, trial, storage.join(campaign.uri, trial.run or trial.name))

    def report(point: Point, told_again: bool = False) -> None:
        content = {"number": trial.number, "epoch": point.epoch, "checkpoint": point.checkpoint}
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "pointer.json").write_text(json.dumps(content))
            tune.report(
                {**point.scores, **content, TOLD_AGAIN: told_again}, checkpoint=tune.Checkpoint.from_directory(folder)
            )

    for point in trial.points:
        if pointer.get("epoch", 0) < point.epoch < until:
            report(point, told_again=True)
    if _is_due(trial, until):
        trial = _train(campaign, trial, until, stretch, rung, mail, report, keeps_all)
    last = trial.at(until)
    if last:
        report(last, told_again=known.at(until) is not None)


def _is_due(trial: Trial, until: int) -> bool:
    return not trial.failure and not trial.stopped and trial.epochs < until


def _resumed(
    campaign: Campaign, trial: Trial, sample: Sample, until: int, pointer: dict[str, Any]
) -> tuple[Trial, Stretch, int]:
    """Return the trial as it resumes, with the name of its run; what it trains; and the rung of its fidelity."""
    trial, start_from = incarnation(trial, sample, pointer)
    if not campaign.fidelity.fields or not _is_due(trial, until):
        return trial, Stretch(until_epoch=until, start_from=start_from), 0
    rung = campaign.fidelity.rung(until)
    # Above the first rung, it trains with other settings, in a run of its own. A repeat is in full throughout.
    below = trial.at(campaign.fidelity.epochs[rung - 1]) if rung else None
    stretch = Stretch(
        until_epoch=until,
        start_from=below.checkpoint if below else "",
        start_epoch=below.epoch if below else 0,
    )
    return dataclasses.replace(trial, run=f"{trial.name}-rung-{rung}" if rung else trial.run), stretch, rung


def _train(
    campaign: Campaign,
    trial: Trial,
    until: int,
    stretch: Stretch,
    rung: int,
    mail: Any,
    report: Callable[[Point], None],
    keeps_all: bool,
) -> Trial:
    """Train the trial's run, pause it exactly at epoch `until`, and return it as it is then, or with its failure.

    An error that is not the trial's own is sent to the driver, and raised.
    """

    def say(line: str) -> None:
        mail.put.remote(line)

    book = Book(campaign, trial, say, lambda point: report(point) if point.epoch < until else None)
    try:
        result = train(
            campaign.recipe_at(trial.sample, rung),
            campaign.fidelity.videos(campaign.manifest, rung),
            campaign.machines,
            storage_uri=campaign.uri,
            name=trial.run or trial.name,
            on_event=book,
            saving=Saving(keep_last=campaign.recipe.loop.epochs) if keeps_all else None,
            max_bad=campaign.max_bad,
            stretch=stretch,
            data=campaign.data,
            token=campaign.token,
        )
        if result.ended and book.trial.points and book.trial.at(until) is None:
            book.end_early(until, result.ended)
        if book.trial.at(until) is None:
            raise CheckpointError(f"{campaign.uri}/{trial.run or trial.name} has no evaluation after epoch {until}")
    except TpnRayError as error:
        book.end("FAILED", {"state": f"failed: {reason(error)}"[:400]})
        if not isinstance(error, TRIALS_OWN):
            mail.put.remote(error)
            raise
        book.trial = dataclasses.replace(book.trial, failure=reason(error))
        campaign.journal.write(book.trial)
        return book.trial
    done = until == apply(campaign.recipe, trial.sample).loop.epochs
    book.end("FINISHED" if done else "", {"state": "complete" if done else f"paused at epoch {until}"})
    return book.trial


def reason(error: TpnRayError) -> str:
    """Describe a failure in one line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0]}"


def _pointer() -> dict[str, Any]:
    kept = tune.get_checkpoint()
    if kept is None:
        return {}
    with kept.as_directory() as folder:
        pointer: dict[str, Any] = json.loads((Path(folder) / "pointer.json").read_text())
    return pointer


def incarnation(trial: Trial, sample: Sample, pointer: dict[str, Any]) -> tuple[Trial, str]:
    """Return the trial as it resumes, and the checkpoint that its run starts from ("": none).

    A pointer to another trial's checkpoint makes it a mutant of that trial; otherwise it resumes in its own run.
    """
    name = f"{trial.name}-from-{pointer['number']:04d}-epoch-{pointer['epoch']:04d}" if pointer else ""
    if not pointer or pointer["number"] == trial.number or trial.run == name:
        return trial, trial.start_from
    changed = ", ".join(
        f"{field.split('.', 1)[1]} {_short(trial.sample.get(field))} -> {_short(value)}"
        for field, value in sample.items()
        if json.loads(json.dumps(value)) != trial.sample.get(field)
    )
    mutation = Transition(
        kind=Kind.MUTATED, epoch=pointer["epoch"], donor=pointer["number"], detail=changed or "nothing changed"
    )
    mutant = dataclasses.replace(
        trial,
        sample=sample,
        points=tuple(point for point in trial.points if point.epoch <= pointer["epoch"]),
        lineage=(*trial.lineage, mutation),
        run=name,
        start_from=pointer["checkpoint"],
    )
    return mutant, mutant.start_from


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


class Book:
    """Enters a run's events into the journal, then into MLflow, and then reports them."""

    def __init__(
        self,
        campaign: Campaign,
        trial: Trial,
        say: Callable[[str], None],
        report: Callable[[Point], None] = lambda point: None,
    ) -> None:
        self.journal, self.session, self.say, self.report = campaign.journal, campaign.session, say, report
        self.begin, self.started = time.time(), 0.0
        self.before = trial
        self.tracked = begin_child(campaign, trial, say)
        if self.tracked:
            self.before = dataclasses.replace(trial, mlflow_run=self.tracked.run_id)
        self.trial = self.before

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self.started = self.started or time.time()
            self.hold(event.placement_group)
        if isinstance(event, Notice):
            self.say(f"{self.trial.name}: warning: {event.text}")
        point = point_of(event) if isinstance(event, Committed) and event.scores else None
        if point:
            self.enter(point)
        if self.tracked:
            track(self.tracked, event)
        if point:
            self.say(f"{self.trial.name}  epoch {point.epoch}  validation {called(point.scores)} {point.score:.1%}")
            self.report(point)

    def hold(self, placement_group: str) -> None:
        """Record what holds the trial's resources, for whoever ends the trial to free."""
        self.before = dataclasses.replace(self.before, placement_group=placement_group)
        self.trial = dataclasses.replace(self.trial, placement_group=placement_group)
        self.journal.write(self.trial)

    def enter(self, point: Point) -> None:
        """Record an evaluation, with how long the trial has held its resources so far."""
        now = time.time()
        held = Held(session=self.session, begin=self.begin, started=self.started or now, end=now)
        self.trial = dataclasses.replace(self.trial.with_point(point), held=(*self.before.held, held))
        self.journal.write(self.trial)

    def end_early(self, epoch: int, why: str) -> None:
        """Carry the last evaluation of a run that ended by itself forward to a later epoch."""
        last = self.trial.points[-1]
        ended = Transition(kind=Kind.ENDED, epoch=last.epoch, detail=why)
        self.before = dataclasses.replace(self.before, lineage=(*self.before.lineage, ended))
        self.trial = dataclasses.replace(self.trial, lineage=self.before.lineage)
        self.enter(dataclasses.replace(last, epoch=epoch))

    def end(self, status: str, tags: dict[str, str]) -> None:
        """Close the MLflow run with a status; "" leaves it open for the trial to resume.

        What the server does not accept now is written from the journal when the campaign ends.
        """
        if not self.tracked:
            return
        self.tracked.set_tags({**tags, "lineage": "; ".join(self.trial.history)})
        sent = self.tracked.end(status) if status else self.tracked.sent
        if not sent:
            self.trial = dataclasses.replace(self.trial, mlflow_run="")
            self.journal.write(self.trial)


def recovered(journal: Journal, trial: Trial, run_uri: str) -> Trial:
    """Return the trial with the evaluations that a killed process did not record, from its run's own records."""
    there = run_folder.committed_steps(run_uri)
    for record in run_folder.read_records(run_uri):
        if record.scores and trial.at(record.epoch) is None:
            event = Committed.of(record, run_folder.place_of(run_uri, record.step, there))
            trial = trial.with_point(point_of(event))
            journal.write(trial)
    return trial


def point_of(event: Committed) -> Point:
    """Return the evaluation of a committed checkpoint."""
    losses = [metrics.values["loss"] for metrics in event.history if "loss" in metrics.values]
    return Point(
        epoch=event.epoch,
        scores=dict(event.scores),
        checkpoint=event.checkpoint,
        train_loss=sum(losses) / len(losses) if losses else None,
    )


def begin_child(campaign: Campaign, trial: Trial, say: Callable[[str], None]) -> TrackedRun | None:
    """Start the trial's MLflow run below the campaign's. None if the server does not answer, which stops no
    training."""
    recipe = apply(campaign.recipe, trial.sample)
    sample = {f"sample.{key}": str(value) for key, value in trial.sample.items()}
    try:
        tracked = tracking.begin(
            campaign.tracking_uri,
            campaign.experiment,
            f"{campaign.name}-{trial.name}",
            parameters={**flat(recipe), **sample},
            tags={"storage": storage.join(campaign.uri, trial.run or trial.name), **sample},
            parent=campaign.parent_run,
        )
    except TrackingError as error:
        say(f"{trial.name} is not tracked while it trains: {str(error).splitlines()[0]}")
        return None
    tracked.log_json(to_plain(recipe), "recipe.json")
    return tracked
