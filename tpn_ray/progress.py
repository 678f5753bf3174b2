"""A run's events, formatted for the terminal, logs, and MLflow. Runs on the driver."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tpn_ray.meter import StatusLine
from tpn_ray.meter import duration as duration
from tpn_ray.score import called, score_of
from tpn_ray.tracking import TrackedRun
from tpn_ray.training import run_folder
from tpn_ray.training.events import (
    BadVideos,
    Committed,
    Diverged,
    Event,
    Failed,
    NodeLoad,
    Notice,
    Progress,
    Started,
    Stopped,
)
from tpn_ray.training.record import Record


def line(event: Event) -> str:
    """Format one event as a line of text; empty if it needs none."""
    match event:
        case Started(step=0):
            return f"training started with {workers(event.workers)}"
        case Started():
            return f"training resumed from step {event.step} with {workers(event.workers)}"
        case Progress():
            return (
                f"epoch {event.epoch}/{event.epochs}  step {event.step}/{event.steps}  loss {event.loss:.3f}  "
                f"top-1 {event.top1:.1%}  {event.clips_per_second:.0f} clips/s  "
                f"waiting for data {event.waiting:.0%}  {duration(event.seconds_left)} left"
            )
        case Committed(scores=scores) if scores:
            five = f"top-5 {scores['val_top5']:.1%}  " if "val_top5" in scores else ""
            return (
                f"epoch {event.epoch}  validation {called(scores)} {score_of(scores):.1%}  {five}"
                f"loss {scores['val_loss']:.3f}  checkpoint {event.checkpoint}"
            )
        case Committed():
            return f"checkpoint {event.checkpoint}"
        case Notice():
            return f"warning: {event.text}"
        case BadVideos() | Failed() | Diverged() | Stopped() | NodeLoad():
            return ""


def workers(count: int) -> str:
    """Return "1 worker" or "2 workers"."""
    return f"{count} worker{'' if count == 1 else 's'}"


def _restarts(starts: int) -> str:
    return f"  {starts - 1} restart(s)" if starts > 1 else ""


class Terminal:
    """Prints a run as it progresses."""

    def __init__(self) -> None:
        self.status = StatusLine()
        self.bad: set[tuple[str, int]] = set()
        self.starts = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, BadVideos):
            self._bad_videos(event)
        elif isinstance(event, Failed):
            self.status.say("a worker was lost; the run resumes from its last checkpoint")
        elif isinstance(event, Diverged | Stopped | NodeLoad):
            pass  # the error that ends the run says it; how busy nodes are is for MLflow
        elif isinstance(event, Progress):
            self.status.show(line(event) + _restarts(self.starts))
        else:
            self.starts += isinstance(event, Started)
            again = f" (start {self.starts})" if isinstance(event, Started) and self.starts > 1 else ""
            self.status.say(line(event) + again)

    def _bad_videos(self, event: BadVideos) -> None:
        for row, reason, message in event.found:
            if (event.split, row) not in self.bad:
                self.bad.add((event.split, row))
                self.status.say(f"bad video ({reason}): {message}")


def track(run: TrackedRun, event: Event) -> None:
    """Send everything that is committed to MLflow, once. Steps count over the whole run."""
    if isinstance(event, Committed):
        for metrics in event.history:
            run.log_metrics({_metric(name): value for name, value in metrics.values.items()}, metrics.step)
        scores = {name.replace("val_", "val/"): value for name, value in event.scores.items()}
        run.log_checkpoint(event.checkpoint, event.step, scores)
        run.log_metrics({"epoch": float(event.epoch)}, event.step)  # last: it says that the rest was sent
        run.set_tags({"last_checkpoint": event.checkpoint})
    elif isinstance(event, NodeLoad):
        run.log_metrics({f"system/{event.node}/{name}": value for name, value in event.values.items()}, event.step)
    elif isinstance(event, Notice):
        run.set_tags({"warning": event.text})
    else:
        run.send()


def catch_up(run: TrackedRun, records: Sequence[Record], run_uri: str) -> None:
    """Track what an earlier attempt of this run has on record and MLflow does not have."""
    known, measured = run.last_step("epoch"), run.last_step(_metric("loss"))
    there = run_folder.committed_steps(run_uri)
    for record in records:
        if record.step > known:
            # A driver killed while tracking this commit may have sent some of its steps already.
            new = tuple(metrics for metrics in record.history if metrics.step > measured)
            committed = Committed.of(record, run_folder.place_of(run_uri, record.step, there))
            track(run, dataclasses.replace(committed, history=new))


def _metric(name: str) -> str:
    """Return the metric's name in MLflow, which shows names that start with system/ on a separate page."""
    return name if "/" in name else f"train/{name}"
