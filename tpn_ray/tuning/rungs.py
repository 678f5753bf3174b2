"""Synchronous successive halving: who is promoted, and what may be suggested when. Pure functions of the measurements.

A campaign's trials come in waves. In each wave, all trials train to the first rung; the best of them, one in
`reduction_factor` but at least `min_promoted`, resume to the next, and so on; the others stay paused where they are.
Waves overlap: wave w is suggested when wave w - 1 has completed its first rung, wave w - 2 its second, and so on, and
may know those scores and no others. Machines are therefore not idle while the last trial of a wave trains, and yet
every suggestion is a function of the seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tpn_ray.errors import ConfigError
from tpn_ray.tuning.journal import Trial
from tpn_ray.tuning.search import Seen

Objectives = Callable[[Trial, int], tuple[float, ...]]
"""Returns the values to maximize for a trial at an epoch; the first is its accuracy."""


@dataclass(frozen=True, kw_only=True)
class Bracket:
    """The epochs at which trials pause and are compared."""

    epochs: tuple[int, ...]
    """Epochs of the rungs, ascending; the last is the whole run."""
    reduction_factor: int = 3
    """Ratio of the trials at a rung to those promoted from it (eta)."""
    min_promoted: int = 1
    """Minimum number of trials promoted, if there are as many."""

    def __post_init__(self) -> None:
        if self.min_promoted < 1:
            raise ConfigError(f"min_promoted={self.min_promoted} must be at least 1")
        if self.reduction_factor < 2:
            raise ConfigError(f"reduction_factor={self.reduction_factor}: it must be at least 2, or nothing is saved")
        if not self.epochs or list(self.epochs) != sorted(set(self.epochs)) or self.epochs[0] < 1:
            raise ConfigError(f"rungs at epochs {self.epochs} must be ascending and start at 1 or later")

    def promoted(self, entered: int) -> int:
        """Return how many of `entered` trials are promoted from a rung."""
        return min(entered, max(self.min_promoted, entered // self.reduction_factor))


def bracket(epochs: int, *, rungs: int, reduction_factor: int, min_promoted: int = 1) -> Bracket:
    """Set rungs at 1, 1/reduction_factor, 1/reduction_factor^2, ... of the epochs, as many as `rungs`."""
    if rungs < 1:
        raise ConfigError(f"rungs={rungs} must be at least 1")
    at = sorted({math.ceil(epochs / reduction_factor**power) for power in range(rungs)})
    return Bracket(epochs=tuple(at), reduction_factor=reduction_factor, min_promoted=min_promoted)


@dataclass(frozen=True, kw_only=True)
class Due:
    """A trial to be trained up to a rung."""

    trial: Trial
    epoch: int
    since: int = 0
    """Epoch of the rung from which it was promoted; 0 for the first rung."""


def due(trials: Sequence[Trial], bracket: Bracket, objectives: Objectives) -> list[Due]:
    """Return all work that may be done now, furthest trials first, so that no wave's end holds anything up."""
    found: list[tuple[int, Due]] = []
    for wave in sorted({trial.wave for trial in trials}):
        rung, pending = frontier([trial for trial in trials if trial.wave == wave], bracket, objectives)
        since = bracket.epochs[rung - 1] if rung else 0
        found += [(-rung, Due(trial=trial, epoch=bracket.epochs[rung], since=since)) for trial in pending]
    return [one for _, one in sorted(found, key=lambda pair: (pair[0], pair[1].trial.number))]


def frontier(wave: Sequence[Trial], bracket: Bracket, objectives: Objectives) -> tuple[int, list[Trial]]:
    """Return the first rung that a wave has not completed and the trials missing there; (number of rungs, []) if
    done."""
    entered = list(wave)
    for rung, epoch in enumerate(bracket.epochs):
        pending = [trial for trial in entered if not trial.failure and trial.at(epoch) is None]
        if pending:
            return rung, pending
        entered = best(entered, epoch, bracket.promoted(len(entered)), objectives)
    return len(bracket.epochs), []


def best(entered: Sequence[Trial], epoch: int, count: int, objectives: Objectives) -> list[Trial]:
    """Return the `count` best trials at a rung: by Pareto front, then accuracy, loss, and number."""
    rest = [trial for trial in entered if trial.at(epoch) is not None]
    values = {trial.number: objectives(trial, epoch) for trial in rest}
    chosen: list[Trial] = []
    while rest and len(chosen) < count:
        front = [one for one in rest if not any(_beats(values[other.number], values[one.number]) for other in rest)]
        chosen += sorted(front, key=lambda trial: _order(trial, epoch))
        rest = [trial for trial in rest if trial not in front]
    return chosen[:count]


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Sort the final table: by epochs reached, then accuracy, loss, and number; failed trials last."""
    return sorted(trials, key=lambda trial: (bool(trial.failure), -trial.epochs, *_order(trial, trial.epochs)))


def may_suggest(wave: int, trials: Sequence[Trial], bracket: Bracket, objectives: Objectives) -> bool:
    """Return whether everything that the wave may know has been measured."""
    for earlier in range(wave):
        done, _ = frontier([trial for trial in trials if trial.wave == earlier], bracket, objectives)
        if done < min(wave - earlier, len(bracket.epochs)):
            return False
    return True


def visible(wave: int, trials: Sequence[Trial], bracket: Bracket, objectives: Objectives) -> list[Seen]:
    """Return the scores that the wave may know."""
    return [
        Seen(sample=trial.sample, epoch=epoch, scores=objectives(trial, epoch))
        for trial in sorted(trials, key=lambda trial: trial.number)
        for epoch in bracket.epochs[: max(0, wave - trial.wave)]
        if trial.at(epoch) is not None
    ]


def planned(waves: Sequence[int], bracket: Bracket) -> tuple[int, int]:
    """Return the epochs of a campaign with waves of these sizes, and how often a trial starts or resumes."""
    epochs = starts = 0
    for size in waves:
        before, left = 0, size
        for epoch in bracket.epochs:
            epochs += left * (epoch - before)
            starts += left
            before, left = epoch, bracket.promoted(left)
    return epochs, starts


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def _order(trial: Trial, epoch: int) -> tuple[float, float, int]:
    point = trial.at(epoch)
    if point is None:
        return math.inf, math.inf, trial.number
    return -point.score, point.scores.get("val_loss", 0.0), trial.number
