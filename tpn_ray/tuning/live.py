"""How far a campaign is, while it runs: a table that changes in the terminal, or lines in a log; the best score so far
as a curve in MLflow; and the report. Runs on the driver."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from tpn_ray.meter import duration
from tpn_ray.output import visible
from tpn_ray.tracking import TrackedRun
from tpn_ray.tuning.journal import Kind, Trial
from tpn_ray.tuning.report.numbers import Hours, hours, setting_text
from tpn_ray.tuning.rungs import ranked

LINE_SECONDS, REPORT_SECONDS = 60.0, 60.0
"""Intervals between two lines in a log, and at which the report is written again at most."""
AROUND_ROWS, LEAST_ROWS = 9, 5
"""Lines of a terminal that the trials leave to others, and trials that are shown at least."""
BEST_SO_FAR = "val/best_so_far"


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much a campaign is."""

    name: str
    trials: int
    epochs: int
    """Epochs of all trials together, at most."""
    in_full: int
    """Epochs of a whole trial."""
    max_concurrent: int


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far a campaign is."""

    epochs: int
    best: Trial | None
    """Trial with the highest score so far, at whatever epoch; None if there is no score."""
    score: float
    """That score."""
    spent: Hours
    seconds_left: float | None
    """Estimate, at the speed of this submission; None if it is not known yet."""

    @property
    def saved(self) -> float:
        """Estimate of the hours of trials' time saved, compared with all begun trials in full."""
        return max(0.0, self.spent.in_full - self.spent.held)


class Countdown:
    """Estimates how long a campaign still takes, from the epochs trained since the first look."""

    def __init__(self) -> None:
        self.first: tuple[float, int] | None = None

    def left(self, epochs: int, planned: int) -> float | None:
        """Return the seconds that are left when so many of the planned epochs are trained."""
        now = time.monotonic()
        self.first = self.first or (now, epochs)
        seconds, trained = now - self.first[0], epochs - self.first[1]
        return seconds / trained * max(0, planned - epochs) if trained else None


def standing(trials: Sequence[Trial], extent: Extent, countdown: Countdown) -> Standing:
    """Return how far a campaign is whose journal has these trials."""
    originals = [trial for trial in trials if trial.repeat_of is None]
    scored = [(point.score, -trial.number, trial) for trial in originals for point in trial.points]
    score, _, best = max(scored, key=lambda one: one[:2]) if scored else (-1.0, 0, None)
    epochs = sum(trial.epochs for trial in trials)
    return Standing(
        epochs=epochs,
        best=best,
        score=score,
        spent=hours(trials, extent.in_full, extent.max_concurrent),
        seconds_left=countdown.left(epochs, extent.epochs),
    )


def line(now: Standing, extent: Extent) -> str:
    """Say how far a campaign is in a line."""
    parts = [f"{now.epochs} of at most {extent.epochs} epochs"]
    if now.best:
        parts.append(f"best so far {now.score:.1%} ({now.best.name})")
    spent = f"{duration(now.spent.held * 3600)} of trials' time"
    parts.append(f"{spent}, {duration(now.saved * 3600)} saved" if now.epochs else spent)
    if now.seconds_left is not None:
        parts.append(f"{duration(now.seconds_left)} left")
    return "  ".join(parts)


def table(trials: Sequence[Trial], now: Standing, extent: Extent, rows: int) -> Table:
    """Draw the trials, the furthest and best of them first, at most so many."""
    shown = Table(title=f"{extent.name}: {line(now, extent)}", title_justify="left", expand=True)
    score = now.best.score_name if now.best else "score"
    for head in ("trial", "epoch", score, "best", "time"):
        shown.add_column(head, no_wrap=True)
    shown.add_column("setting", no_wrap=True, overflow="ellipsis", ratio=1)
    order = ranked(trials)
    for trial in order[:rows]:
        tops = [point.score for point in trial.points]
        shown.add_row(
            trial.name,
            f"{trial.epochs}/{extent.in_full}",
            f"{tops[-1]:.1%}" if tops else "-",
            f"{max(tops):.1%}" if tops else "-",
            duration(trial.seconds),
            escape(visible(trial.failure or setting_text(trial.sample))),
            style="bold" if now.best and trial.number == now.best.number else None,
        )
    more = max(0, len(order) - rows) + max(0, extent.trials - len(order))
    if more:
        shown.caption = f"{more} more, {max(0, extent.trials - len(order))} of them not begun"
    return shown


class Display:
    """Shows a campaign in place with `show`, or without it in a line every minute."""

    def __init__(self, extent: Extent, show: Callable[[Table], None] | None) -> None:
        self.extent, self.show, self.countdown, self.said = extent, show, Countdown(), time.monotonic()

    def __call__(self, trials: list[Trial]) -> None:
        """Show the trials of the journal."""
        now = standing(trials, self.extent, self.countdown)
        if self.show:
            room = max(LEAST_ROWS, shutil.get_terminal_size().lines - AROUND_ROWS)
            self.show(table(trials, now, self.extent, room))
        elif now.best and time.monotonic() - self.said >= LINE_SECONDS:
            self.said = time.monotonic()
            print(line(now, self.extent), flush=True)


class Curve:
    """Logs the best score so far in the campaign's MLflow run, by the number of epochs that all trials trained."""

    def __init__(self, tracked: TrackedRun) -> None:
        self.tracked, self.logged = tracked, tracked.last_step(BEST_SO_FAR)

    def __call__(self, trials: list[Trial]) -> None:
        """Log a point, if there is a new one."""
        epochs = sum(trial.epochs for trial in trials)
        tops = [point.score for trial in trials if trial.repeat_of is None for point in trial.points]
        if tops and epochs > self.logged:
            self.logged = epochs
            self.tracked.log_metrics({BEST_SO_FAR: max(tops)}, epochs)
        else:
            self.tracked.send()


class Reports:
    """Has the report written again when trials were promoted or reached their end."""

    def __init__(self, write: Callable[[list[Trial]], None], in_full: int) -> None:
        self.write, self.in_full = write, in_full
        self.seen, self.written = (0, 0), -REPORT_SECONDS

    def __call__(self, trials: list[Trial]) -> None:
        """Write, if a rung has ended since the last time."""
        promoted = sum(one.kind is Kind.PROMOTED for trial in trials for one in trial.lineage)
        ended = sum(trial.stopped or trial.epochs >= self.in_full for trial in trials)
        if (promoted, ended) != self.seen and time.monotonic() - self.written >= REPORT_SECONDS:
            self.write(trials)
            self.seen, self.written = (promoted, ended), time.monotonic()
