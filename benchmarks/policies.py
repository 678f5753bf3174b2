"""Compares policies of what to train next on the curves of whole grids (`benchmarks.curves`). Runs on one machine."""

from __future__ import annotations

import dataclasses
import io
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from benchmarks.campaign import CampaignBench
from benchmarks.curves import Grid, train_grid
from benchmarks.freeze_thaw import Rounds, encoded
from tpn_ray import storage
from tpn_ray.errors import ConfigError
from tpn_ray.recipe import Recipe, replace_fields
from tpn_ray.tuning import rungs, search
from tpn_ray.tuning.how import How, bracket_at
from tpn_ray.tuning.journal import Point, Trial
from tpn_ray.tuning.search import Question, Seen
from tpn_ray.tuning.space import Sample

LEAST_SHOWN = 0.1
"""Points below which the picture makes no difference."""
HOW = How()
"""Successive halving and ASHA have the rungs of a campaign's defaults."""


@dataclass(frozen=True, kw_only=True)
class PoliciesBench:
    """Policies against each other on the same grids."""

    data: str
    """Dataset, as jobs/train.py takes it."""

    fresh: str
    """Dataset of the same kind that no trial has seen, such as toy videos of another --seed. What each policy chooses
    is scored again on its validation videos."""

    vary: tuple[str, ...] = CampaignBench.vary
    """Fields of the grid, each as FIELD=choice(...)."""

    seeds: int = 4
    """Number of grids, each with its own data order, augmentation, and initial weights."""

    epochs: int = 18
    """Number of epochs of a full trial."""

    folder: str = "runs/bench-policies"
    """Local folder of the grids, which train with one process per core; the same command resumes there."""

    share: float = 0.25
    """Share of the grid's epochs that each policy may use."""

    replays: int = 20
    """Number of orders of the settings, and of other draws, over which each policy is averaged."""

    picture: str = ""
    """PNG file for the curves."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"share={self.share:g} must be above 0 and at most 1")
        for field in ("replays", "seeds", "epochs"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field}={getattr(self, field)} must be at least 1")


Policy = Callable[[Grid, int, int], Iterator[tuple[int, int]]]
"""From a grid, a budget in epochs, and a seed to what is trained, in order: pairs of a setting and an epoch of it."""


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
    bracket = bracket_at(grid.epochs, HOW)
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
    bracket = bracket_at(grid.epochs, HOW)
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
        for one in below[: len(below) // HOW.reduction_factor]:
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
    "freeze-thaw": freeze_thaw,
}


def incumbents(grid: Grid, policy: Policy, budget: int, seed: int) -> list[tuple[int, int]]:
    """Return after each epoch of the budget which checkpoint a policy would choose: the best on the validation videos,
    of equal ones the last."""
    best, chosen = (-1, 0), list[tuple[int, int]]()
    for place in islice(policy(grid, budget, seed), budget):
        if best[1] == 0 or _top(grid, place) >= _top(grid, best):
            best = place
        chosen.append(best)
    return chosen + [best] * (budget - len(chosen))  # a policy may end before its budget does


def best_of(grid: Grid) -> tuple[int, int]:
    """Return the checkpoint that is chosen when all settings are trained to their ends."""
    places = [(one, epoch) for epoch in range(1, grid.epochs + 1) for one in range(len(grid.samples))]
    return max(places, key=lambda place: (_top(grid, place), place[1]))


def _top(grid: Grid, place: tuple[int, int]) -> float:
    return float(grid.tops[place[0], place[1] - 1])


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a policy reached."""

    curve: NDArray[np.float64]
    """(n grids, 100): points of validation top-1 behind the best of the grid, by percent of the budget, averaged over
    replays."""
    fresh: NDArray[np.float64]
    """(n grids): the same on fresh videos for what is chosen in the end."""

    @property
    def validation(self) -> NDArray[np.float64]:
        """(n grids): points behind in the end."""
        return self.curve[:, -1]


@dataclass(frozen=True, kw_only=True)
class PoliciesReport:
    """The results of all policies."""

    share: float
    results: dict[str, Result]

    def __str__(self) -> str:
        grids = len(next(iter(self.results.values())).fresh)
        lines = [f"points of top-1 behind the grid's best with {self.share:.0%} of its epochs, mean of {grids} grids:"]
        for name, result in self.results.items():
            lines.append(f"  {name:<26} fresh videos {_listed(result.fresh)}; validation {_listed(result.validation)}")
        if grids > 1:
            best = min(self.results, key=lambda name: float(self.results[name].fresh.mean()))
            lines.append(f"ahead on fresh videos, {best} of the others, in points (95 % interval, paired by grid):")
            lines += [
                "  {:<26} {:+.2f} ({:+.2f} to {:+.2f})".format(name, *ahead(self.results[best], result))
                for name, result in self.results.items()
                if name != best
            ]
        return "\n".join(lines)

    def picture(self) -> bytes:
        """Draw points behind by share of the grid's epochs, as a PNG."""
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        shares = np.arange(1, 101) * self.share
        for place, (name, result) in enumerate(self.results.items()):
            points = np.maximum(result.curve.mean(axis=0), LEAST_SHOWN)
            axes.plot(shares, points, label=name, linewidth=2.0, linestyle="--" if place % 2 else "-")
        axes.set_xlabel("% of the grid's epochs")
        axes.set_ylabel("points of validation top-1 behind the grid's best")
        ticks = (LEAST_SHOWN, 0.25, 0.5, 1, 2, 5, 10, 20, 50, 100)
        axes.set_yscale("log")
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.axhline(0.5, color="#b8c1cc", linewidth=1)
        axes.legend(frameon=False)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=150)
        return file.getvalue()


def ahead(one: Result, other: Result) -> tuple[float, float, float]:
    """Return by how many points on fresh videos one policy is ahead of another, and the ends of the 95 % interval of
    Student's t, paired by grid."""
    gains = other.fresh - one.fresh
    half = float(stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains))
    return float(gains.mean()), float(gains.mean()) - half, float(gains.mean()) + half


def _listed(points: NDArray[np.float64]) -> str:
    return f"{statistics.mean(points):5.2f} ({', '.join(f'{value:.2f}' for value in points)})"


def compare(grids: Sequence[Grid], *, share: float, replays: int) -> PoliciesReport:
    """Replay all policies on all grids."""
    curves: dict[str, list[NDArray[np.float64]]] = {name: [] for name in POLICIES}
    fresh: dict[str, list[float]] = {name: [] for name in POLICIES}
    for grid in grids:
        budget, best = max(1, int(share * grid.tops.size)), best_of(grid)
        percent = np.maximum(1, np.ceil(np.arange(1, 101) * budget / 100)).astype(int) - 1
        chosen = {
            name: [incumbents(grid, policy, budget, seed) for seed in range(replays)]
            for name, policy in POLICIES.items()
        }
        (whole,) = grid.fresh([best])
        ends = {name: [run[-1] for run in runs] for name, runs in chosen.items()}
        grid.fresh(sorted({place for places in ends.values() for place in places}))  # all at once
        for name, runs in chosen.items():
            tops = np.array([[_top(grid, place) for place in run] for run in runs])
            curves[name].append(100 * (_top(grid, best) - tops.mean(axis=0))[percent])
            fresh[name].append(100 * (whole - statistics.mean(grid.fresh(ends[name]))))
    results = {name: Result(curve=np.array(curves[name]), fresh=np.array(fresh[name])) for name in POLICIES}
    return PoliciesReport(share=share, results=results)


def measure_policies(recipe: Recipe, bench: PoliciesBench, *, say: Callable[[str], None]) -> PoliciesReport:
    """Train the grids that the folder does not hold, and run all policies on all grids."""
    grids = []
    for seed in range(bench.seeds):
        seeded = replace_fields(recipe, {"loop.epochs": bench.epochs, "loop.seed": seed})
        folder = Path(bench.folder) / f"seed-{seed}"
        grids.append(train_grid(seeded, bench.data, bench.fresh, bench.vary, folder, say=say))
    report = compare(grids, share=bench.share, replays=bench.replays)
    if bench.picture:
        storage.write_bytes(storage.absolute(bench.picture), report.picture())
    return report
