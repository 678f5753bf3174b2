"""Which trials to train on, by extrapolating learning curves with a Gaussian process. Pure; runs on the driver.

This is freeze-thaw (Swersky et al., 2014): any trial can be trained a step further and paused again. All scores so far
are one regression over (setting, step), as in DyHPO (Wistuba et al., 2022) without its network. What is trained next is
drawn by Thompson sampling of the scores at the end. Choices come in rounds, and each is a function of the scores of the
rounds before it and of the seed: a campaign that was killed chooses as if it had not been.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from tpn_ray.tuning.distributions import from_json
from tpn_ray.tuning.space import Sample, Space

FIRST = 4
"""Trials that take a first step before the curves are asked."""
SAMPLES = 16
"""Draws of the ends of all curves for each trial of a round, from which its trials are taken in order."""


class _Columns(RBF):  # type: ignore[misc]  # scikit-learn is untyped here
    """The squared exponential of some columns."""

    def __init__(
        self, columns: tuple[int, ...], length_scale: float = 1.0, length_scale_bounds: Any = (0.1, 10.0)
    ) -> None:
        super().__init__(length_scale, length_scale_bounds)
        self.columns = columns

    def __call__(self, first: Any, second: Any = None, eval_gradient: bool = False) -> Any:
        chosen = list(self.columns)
        return super().__call__(first[:, chosen], None if second is None else second[:, chosen], eval_gradient)


def encoded(space: Space, samples: Sequence[Sample]) -> NDArray[np.float64]:
    """Return (n samples, d): each range on [0, 1], in its logarithm if it is searched so, and each choice as one of
    several columns, at a distance of 1 from the others."""
    rows = []
    for sample in samples:
        row = list[float]()
        for name, one in space.items():
            value = from_json(sample[name])
            if isinstance(one, CategoricalDistribution):
                row += [math.sqrt(0.5) * (value == other) for other in one.choices]
            else:
                scale = math.log if one.log else float
                low, high = scale(one.low), scale(one.high)
                row.append((scale(value) - low) / (high - low) if high > low else 0.0)
        rows.append(row)
    return np.array(rows, dtype=float)


def fitted(
    codes: NDArray[np.float64], curves: Sequence[Sequence[float]], steps: int
) -> tuple[GaussianProcessRegressor, NDArray[np.float64]]:
    """Fit the process to all scores, and return it with the points of all trials' ends, (n trials, d + 1)."""

    def points(trial: int, count: int, first: int = 1) -> list[list[float]]:
        # Curves are steep at first, so a step is a logarithm.
        return [[*codes[trial], math.log(at) / math.log(max(steps, 2))] for at in range(first, count + 1)]

    known = np.array([point for trial, curve in enumerate(curves) for point in points(trial, len(curve))])
    scores = np.array([score for curve in curves for score in curve])
    setting, step = tuple(range(codes.shape[1])), (codes.shape[1],)
    # A shape that all curves share, a level for each setting, and what a setting changes in the shape.
    kernel = (
        ConstantKernel(1.0, (0.01, 100.0)) * _Columns(step, 1.0, (0.2, 5.0))
        + ConstantKernel(1.0, (0.01, 100.0)) * _Columns(setting, 1.0, (0.3, 5.0))
        + ConstantKernel(0.1, (0.001, 10.0)) * _Columns((*setting, *step), 1.0, (0.3, 5.0))
        + WhiteKernel(0.01, (0.0001, 1.0))
    )
    process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # of a scale at its bound
        process.fit(known, scores)
    return process, np.array([points(trial, steps, steps)[0] for trial in range(len(codes))])


def choose(
    codes: NDArray[np.float64],
    curves: Sequence[Sequence[float]],
    *,
    steps: int,
    count: int,
    left: int,
    seed: int,
    failed: Sequence[int] = (),
) -> list[int]:
    """Return at most `count` different trials to train a step further, with `left` steps left for all together.

    `codes` are the settings, (n trials, d); `curves` are the scores after each step so far, of at most `steps`. When no
    more is left than the trial with the best expected end needs, it gets all of it.
    """
    open_ones = [trial for trial, curve in enumerate(curves) if len(curve) < steps and trial not in failed]
    begun = [trial for trial, curve in enumerate(curves) if curve]
    fresh = [trial for trial in open_ones if not curves[trial]]
    if len(begun) < FIRST and fresh:
        return fresh[: min(count, FIRST - len(begun), left)]
    process, ends = fitted(codes, curves, steps)
    going = [trial for trial in begun if trial not in failed]
    if going:
        expected = process.predict(ends[going])
        best = going[int(np.argmax(expected))]
        if left <= steps - len(curves[best]):
            return [best]
    random = int(np.random.SeedSequence([seed, sum(map(len, curves))]).generate_state(1)[0])
    chosen = list[int]()
    for ends_drawn in process.sample_y(ends, n_samples=count * SAMPLES, random_state=random).T:
        first = max(open_ones, key=lambda trial: (ends_drawn[trial], -trial), default=None)
        if first is not None and first not in chosen:
            chosen.append(first)
        if len(chosen) == min(count, left, len(open_ones)):
            break
    return chosen


class Rounds:
    """The rounds of a campaign, computed again from its scores."""

    def __init__(self, codes: NDArray[np.float64], *, steps: int, budget: int, width: int, seed: int) -> None:
        """`codes` are the settings, (n trials, d), of which each trains at most `steps` steps, `width` of them in a
        round, and all together `budget` steps."""
        self.codes, self.steps, self.left, self.width, self.seed = codes, steps, budget, width, seed
        self.curves = [list[float]() for _ in codes]
        """The scores of all rounds that are over."""
        self.failed = set[int]()
        self.chosen = list[int]()

    def due(self, known: Sequence[Sequence[float]], failed: Sequence[int] = ()) -> list[tuple[int, int]]:
        """Return the trials of the current round that have not been trained, and up to which step.

        `known` are all scores, (n trials, up to `steps`), and `failed` are trials that gave up after theirs. Empty when
        the budget is spent, or all trials are at their end.
        """
        while True:
            if not self.chosen:
                self.chosen = self._choose()
            if not self.chosen:
                return []
            missing = [one for one in self.chosen if len(known[one]) <= len(self.curves[one]) and one not in failed]
            if missing:
                return [(one, len(self.curves[one]) + 1) for one in missing]
            for one in self.chosen:
                if len(known[one]) > len(self.curves[one]):
                    self.curves[one].append(known[one][len(self.curves[one])])
                else:
                    self.failed.add(one)
            self.left -= len(self.chosen)
            self.chosen = []

    def _choose(self) -> list[int]:
        if self.left < 1 or all(len(c) == self.steps or one in self.failed for one, c in enumerate(self.curves)):
            return []
        return choose(
            self.codes,
            self.curves,
            steps=self.steps,
            count=self.width,
            left=self.left,
            seed=self.seed,
            failed=sorted(self.failed),
        )
