"""Compares policies of what to train next on the stored curves of whole grids. Runs anywhere; nothing is trained.

A trial is an exact function of its setting, pauses included, so a grid whose trials were all trained to the end and
scored after every epoch holds what any policy would have measured.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from benchmarks.freeze_thaw import Rounds, encoded
from tpn_ray import storage
from tpn_ray.errors import ConfigError
from tpn_ray.sealed import unseal
from tpn_ray.tuning import rungs, search
from tpn_ray.tuning.distributions import parse
from tpn_ray.tuning.journal import Journal, Point, Trial
from tpn_ray.tuning.search import Question, Seen
from tpn_ray.tuning.space import Sample, Space

RUNGS, FACTOR, LEAST = 3, 3, 2
"""Successive halving and ASHA, as jobs/bench.py campaign has them."""
OURS = "freeze-thaw"


@dataclass(frozen=True, kw_only=True)
class PoliciesBench:
    """Policies against each other on stored grids."""

    grids: tuple[str, ...]
    """Campaigns whose trials were all trained to the end and scored after every epoch, such as the grids of
    jobs/bench.py campaign: folders on disk or s3://."""

    share: float = 0.25
    """Share of the grid's epochs that each policy may use."""

    replays: int = 20
    """Number of orders of the settings, and of other draws, over which each policy is averaged."""

    picture: str = ""
    """PNG file for the curves."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"share={self.share:g} must be above 0 and at most 1")
        if self.replays < 1 or not self.grids:
            raise ConfigError(f"replays={self.replays} must be at least 1, and there must be a grid")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All curves of a grid."""

    name: str
    space: Space
    samples: list[Sample]
    tops: NDArray[np.float64]
    """(n settings, epochs): validation score after each epoch."""

    @property
    def epochs(self) -> int:
        return int(self.tops.shape[1])


Policy = Callable[[Grid, int, int], Iterator[tuple[int, int]]]
"""From a grid, a budget in epochs, and a seed to what is trained, in order: pairs of a setting and an epoch of it."""


def read_grid(uri: str) -> Grid:
    """Read a campaign's curves. Raises ConfigError if a trial misses an epoch."""
    place = storage.join(storage.absolute(uri), "campaign.json")
    about = unseal(storage.read_bytes(place), place, "Put it back from a copy")
    trials = [trial for trial in Journal(uri=storage.absolute(uri)).trials() if trial.repeat_of is None]
    epochs = int(about["recipe"]["loop"]["epochs"])
    for trial in trials:
        if [point.epoch for point in trial.points] != list(range(1, epochs + 1)):
            raise ConfigError(
                f"{uri}: {trial.name} was not scored after each of {epochs} epochs; train the grid with "
                "--loop.evaluate-every-epochs 1 --scheduler none"
            )
    if len(trials) < 2:
        raise ConfigError(f"{uri} has {len(trials)} trials, no grid")
    return Grid(
        name=storage.name(storage.absolute(uri)),
        space={name: parse(text) for name, text in about["space"].items()},
        samples=[trial.sample for trial in trials],
        tops=np.array([[point.score for point in trial.points] for trial in trials]),
    )


def _order(grid: Grid, seed: int) -> list[int]:
    return [int(one) for one in np.random.default_rng(seed).permutation(len(grid.samples))]


def random_search(grid: Grid, budget: int, seed: int) -> Iterator[tuple[int, int]]:
    """Train one setting after the other to its end."""
    return ((one, epoch) for one in _order(grid, seed) for epoch in range(1, grid.epochs + 1))


def one_epoch_first(grid: Grid, budget: int, seed: int) -> Iterator[tuple[int, int]]:
    """Train all settings for one epoch, then the best ones to their ends, one after the other (Bohdal et al., 2023,
    found that hard to beat)."""
    order = _order(grid, seed)
    yield from ((one, 1) for one in order)
    for one in sorted(order, key=lambda one: -grid.tops[one, 0]):
        yield from ((one, epoch) for epoch in range(2, grid.epochs + 1))


def halving(grid: Grid, budget: int, seed: int) -> Iterator[tuple[int, int]]:
    """Promote as the campaigns' default scheduler does."""
    bracket = rungs.bracket(grid.epochs, rungs=RUNGS, reduction_factor=FACTOR, min_promoted=LEAST)
    order = _order(grid, seed)
    trials = [Trial(number=place, sample=grid.samples[one]) for place, one in enumerate(order)]

    def value(trial: Trial, epoch: int) -> tuple[float, ...]:
        return (float(grid.tops[order[trial.number], epoch - 1]),)

    while work := rungs.due(trials, bracket, value):
        number, one = work[0].trial.number, order[work[0].trial.number]
        yield from ((one, epoch) for epoch in range(work[0].since + 1, work[0].epoch + 1))
        point = Point(epoch=work[0].epoch, scores={"val_top1": value(trials[number], work[0].epoch)[0]}, checkpoint="")
        trials[number] = dataclasses.replace(trials[number].with_point(point))


def asha(grid: Grid, budget: int, seed: int) -> Iterator[tuple[int, int]]:
    """Promote as soon as a setting is among the best third that reached its rung, and pause the others (Li et al.,
    2020), on one machine."""
    bracket = rungs.bracket(grid.epochs, rungs=RUNGS, reduction_factor=FACTOR)
    reached = [list[int]() for _ in bracket.epochs]
    waiting = _order(grid, seed)[::-1]
    while True:
        promoted, rung = _promotable(grid, bracket.epochs, reached)
        if promoted is None and not waiting:
            return
        one = waiting.pop() if promoted is None else promoted
        since = bracket.epochs[rung - 1] if rung else 0
        yield from ((one, epoch) for epoch in range(since + 1, bracket.epochs[rung] + 1))
        reached[rung].append(one)


def _promotable(grid: Grid, epochs: Sequence[int], reached: Sequence[Sequence[int]]) -> tuple[int | None, int]:
    for rung in range(len(epochs) - 1, 0, -1):
        below = sorted(reached[rung - 1], key=lambda one: -grid.tops[one, epochs[rung - 1] - 1])
        for one in below[: len(below) // FACTOR]:
            if one not in reached[rung]:
                return one, rung
    return None, 0


def tpe(grid: Grid, budget: int, seed: int) -> Iterator[tuple[int, int]]:
    """Train what Optuna's TPE suggests to its end, each setting once."""
    left, seen = _order(grid, seed), list[Seen]()
    while left:
        question = Question(
            space=grid.space,
            is_valid=lambda sample: True,
            seen=seen,
            first=len(seen),
            count=len(grid.samples),
            seed=seed,
        )
        suggested = search.tpe(question) if len(seen) >= search.FIRST_BY_CHANCE else []
        known = {_written(grid.samples[one]): one for one in left}
        one = next((known[_written(sample)] for sample in suggested if _written(sample) in known), left[0])
        left.remove(one)
        yield from ((one, epoch) for epoch in range(1, grid.epochs + 1))
        seen.append(Seen(sample=grid.samples[one], epoch=grid.epochs, scores=(float(grid.tops[one, -1]),)))


def _written(sample: Sample) -> str:
    return json.dumps(sample, sort_keys=True)  # which writes lists and tuples alike


def freeze_thaw(grid: Grid, budget: int, seed: int) -> Iterator[tuple[int, int]]:
    """Train what the extrapolated curves promise."""
    rounds = Rounds(encoded(grid.space, grid.samples), steps=grid.epochs, budget=budget, width=2, seed=seed)
    known = [list[float]() for _ in grid.samples]
    while due := rounds.due(known):
        for one, epoch in due:
            yield one, epoch
            known[one].append(float(grid.tops[one, epoch - 1]))


POLICIES: dict[str, Policy] = {
    "random search in full": random_search,
    "one epoch, then the best": one_epoch_first,
    "successive halving": halving,
    "ASHA that pauses": asha,
    "TPE in full": tpe,
    OURS: freeze_thaw,
}


def behind(grid: Grid, policy: Policy, budget: int, seed: int) -> NDArray[np.float64]:
    """Return (budget,): after each epoch trained, how many points of top-1 the best checkpoint so far is behind the
    best of the whole grid."""
    trained = islice(policy(grid, budget, seed), budget)
    tops = [float(grid.tops[one, epoch - 1]) for one, epoch in trained]
    tops += [-math.inf] * (budget - len(tops))  # it has ended: its best checkpoint stays
    return 100.0 * (float(grid.tops.max()) - np.maximum.accumulate(np.array(tops, dtype=np.float64)))


@dataclass(frozen=True, kw_only=True)
class PoliciesReport:
    """The curves of all policies."""

    share: float
    points: dict[str, NDArray[np.float64]]
    """Policy -> (n grids, 100): points behind the best of the grid, by percent of its budget, averaged over replays."""

    def against(self, name: str) -> tuple[float, float, float]:
        """Return by how many points ours is ahead of a policy at the end of the budget, and the ends of the 95 %
        interval, paired by grid (nan for a single grid)."""
        ahead = self.points[name][:, -1] - self.points[OURS][:, -1]
        mean = float(ahead.mean())
        if len(ahead) < 2:
            return mean, math.nan, math.nan
        half = float(stats.t.ppf(0.975, len(ahead) - 1) * stats.sem(ahead))
        return mean, mean - half, mean + half

    def __str__(self) -> str:
        lines = [f"points behind the grid's best with {self.share:.0%} of its epochs, mean of {self._grids} grids:"]
        for name, points in self.points.items():
            each = ", ".join(f"{value:.1f}" for value in points[:, -1])
            text = f"  {name:<26} {statistics.mean(points[:, -1]):5.2f}  ({each})"
            if name != OURS:
                mean, low, high = self.against(name)
                text += f"; {OURS} is ahead by {mean:+.2f} ({low:+.2f} to {high:+.2f})"
            lines.append(text)
        return "\n".join(lines)

    @property
    def _grids(self) -> int:
        return len(self.points[OURS])

    def picture(self) -> bytes:
        """Draw points behind by share of the grid's epochs, as a PNG."""
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        shares = np.arange(1, 101) * self.share
        for name, points in self.points.items():
            axes.plot(shares, points.mean(axis=0), label=name, linewidth=2.5 if name == OURS else 1.2)
        axes.set_xlabel("% of the grid's epochs")
        axes.set_ylabel("points of top-1 behind the grid's best")
        axes.set_yscale("symlog", linthresh=1.0)
        axes.axhline(0.5, color="#b8c1cc", linewidth=1)
        axes.legend(frameon=False)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=150)
        return file.getvalue()


def measure_policies(bench: PoliciesBench) -> PoliciesReport:
    """Run all policies on all grids."""
    points: dict[str, list[NDArray[np.float64]]] = {name: [] for name in POLICIES}
    for grid in map(read_grid, bench.grids):
        budget = max(1, int(bench.share * grid.tops.size))
        percent = np.maximum(1, np.ceil(np.arange(1, 101) * budget / 100)).astype(int) - 1
        for name, policy in POLICIES.items():
            curves = [behind(grid, policy, budget, seed) for seed in range(bench.replays)]
            points[name].append(np.mean(curves, axis=0)[percent])
    report = PoliciesReport(share=bench.share, points={name: np.array(rows) for name, rows in points.items()})
    if bench.picture:
        storage.write_bytes(storage.absolute(bench.picture), report.picture())
    return report
