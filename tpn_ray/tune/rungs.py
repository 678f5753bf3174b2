"""Synchronous rungs: which trials go on, and what may be suggested when. Pure functions of what was measured.

A campaign's trials come in waves. In each, all trials train to the first rung; the best of them, one in `keep` but some
at least, go on to the next, and so on; the others stay paused where they are. Waves overlap: wave w is suggested when
wave w - 1 has done its first rung, wave w - 2 its second, and so on, and may know these scores and no others. So
machines are not idle while the last trial of a wave trains, and yet every suggestion is a function of the seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tpn_ray.errors import ConfigError
from tpn_ray.tune.journal import Trial
from tpn_ray.tune.search import Seen

Objectives = Callable[[Trial, int], tuple[float, ...]]
"""What is to be high for a trial at an epoch; the first is its accuracy."""


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The epochs at which trials pause and are compared."""

    epochs: tuple[int, ...]
    """Rising; the last is the whole run."""
    keep: int = 3
    """One trial in this many goes on."""
    finalists: int = 1
    """But at least so many trials, where there are as many."""

    def __post_init__(self) -> None:
        if self.finalists < 1:
            raise ConfigError(f"finalists={self.finalists} must be at least 1")
        if self.keep < 2:
            raise ConfigError(f"keep={self.keep}: one in at least 2 must go on, or nothing is saved")
        if not self.epochs or list(self.epochs) != sorted(set(self.epochs)) or self.epochs[0] < 1:
            raise ConfigError(f"rungs at epochs {self.epochs} must be rising and begin at 1 or later")

    def promoted(self, entered: int) -> int:
        """How many of so many trials go on from a rung."""
        return min(entered, max(self.finalists, entered // self.keep))


def ladder(epochs: int, *, rungs: int, keep: int, finalists: int = 1) -> Ladder:
    """Rungs at 1/keep, 1/keep^2 ... of the epochs, at most `rungs` with the last."""
    if rungs < 1:
        raise ConfigError(f"rungs={rungs} must be at least 1")
    at = sorted({math.ceil(epochs / keep**power) for power in range(rungs)})
    return Ladder(epochs=tuple(at), keep=keep, finalists=finalists)


@dataclass(frozen=True, kw_only=True)
class Due:
    """A trial to be trained up to a rung."""

    trial: Trial
    epoch: int
    since: int = 0
    """The rung that it was promoted at."""


def due(trials: Sequence[Trial], ladder: Ladder, objectives: Objectives) -> list[Due]:
    """All that may be trained now; what has come furthest first, so that the end of a wave is not waited for."""
    found: list[tuple[int, Due]] = []
    for wave in sorted({trial.wave for trial in trials}):
        rung, pending = frontier([trial for trial in trials if trial.wave == wave], ladder, objectives)
        since = ladder.epochs[rung - 1] if rung else 0
        found += [(-rung, Due(trial=trial, epoch=ladder.epochs[rung], since=since)) for trial in pending]
    return [one for _, one in sorted(found, key=lambda pair: (pair[0], pair[1].trial.number))]


def frontier(wave: Sequence[Trial], ladder: Ladder, objectives: Objectives) -> tuple[int, list[Trial]]:
    """The first rung that a wave has not done, and who is missing there; (number of rungs, nobody) when all is done."""
    entered = list(wave)
    for rung, epoch in enumerate(ladder.epochs):
        pending = [trial for trial in entered if not trial.failure and trial.at(epoch) is None]
        if pending:
            return rung, pending
        entered = best(entered, epoch, ladder.promoted(len(entered)), objectives)
    return len(ladder.epochs), []


def best(entered: Sequence[Trial], epoch: int, count: int, objectives: Objectives) -> list[Trial]:
    """The `count` best at a rung: by fronts that no other trial beats in everything, then accuracy, loss, number."""
    rest = [trial for trial in entered if trial.at(epoch) is not None]
    values = {trial.number: objectives(trial, epoch) for trial in rest}
    chosen: list[Trial] = []
    while rest and len(chosen) < count:
        front = [one for one in rest if not any(_beats(values[other.number], values[one.number]) for other in rest)]
        chosen += sorted(front, key=lambda trial: _order(trial, epoch))
        rest = [trial for trial in rest if trial not in front]
    return chosen[:count]


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """The final table: who has come furthest, there by accuracy, loss and number; failed ones last."""
    return sorted(trials, key=lambda trial: (bool(trial.failure), -trial.epochs, *_order(trial, trial.epochs)))


def may_suggest(wave: int, trials: Sequence[Trial], ladder: Ladder, objectives: Objectives) -> bool:
    """Whether everything that wave may know is there."""
    for earlier in range(wave):
        done, _ = frontier([trial for trial in trials if trial.wave == earlier], ladder, objectives)
        if done < min(wave - earlier, len(ladder.epochs)):
            return False
    return True


def visible(wave: int, trials: Sequence[Trial], ladder: Ladder, objectives: Objectives) -> list[Seen]:
    """The scores that wave may know."""
    return [
        Seen(sample=trial.sample, epoch=epoch, scores=objectives(trial, epoch))
        for trial in sorted(trials, key=lambda trial: trial.number)
        for epoch in ladder.epochs[: max(0, wave - trial.wave)]
        if trial.at(epoch) is not None
    ]


def planned(waves: Sequence[int], ladder: Ladder) -> tuple[int, int]:
    """Epochs of a campaign of waves of these sizes, and how often a trial begins or goes on."""
    epochs = starts = 0
    for size in waves:
        before, left = 0, size
        for epoch in ladder.epochs:
            epochs += left * (epoch - before)
            starts += left
            before, left = epoch, ladder.promoted(left)
    return epochs, starts


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def _order(trial: Trial, epoch: int) -> tuple[float, float, int]:
    point = trial.at(epoch)
    if point is None:
        return math.inf, math.inf, trial.number
    return -point.top1, point.scores.get("val_loss", 0.0), trial.number
