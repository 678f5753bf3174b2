"""The combined result of a table's runs. Pure; runs anywhere.

Two things vary from run to run: the seed and, if others had been drawn, the videos. The interval of a difference
resamples both, so that one lucky seed does not make it overconfident.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from tpn_ray.metrics import RESAMPLES

Ranks = Int[np.ndarray, "s v"]
"""Rank of the right class among the scores, from 0, by seed and video."""


@dataclass(frozen=True)
class RowOutcome:
    """One row of a table, over its seeds."""

    name: str
    top1: tuple[float, ...]
    """Top-1 of each seed."""
    top5: tuple[float, ...]
    gain: float
    """Mean top-1 minus the baseline's."""
    gain_interval: tuple[float, float]
    """95 % interval of the gain."""
    gains: tuple[float, ...]
    """Gain of each seed over the baseline with the same seed."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.top1))

    @property
    def mean_top5(self) -> float:
        return float(np.mean(self.top5))

    @property
    def spread(self) -> float:
        """Standard deviation over seeds (n - 1); nan for one seed."""
        return float(np.std(self.top1, ddof=1)) if len(self.top1) > 1 else float("nan")

    @property
    def is_better(self) -> bool:
        """Whether it beats the baseline with every seed, and its interval is above 0."""
        return self.gain_interval[0] > 0 and min(self.gains) > 0


def outcome(name: str, ranks: Ranks, baseline: Ranks) -> RowOutcome:
    """Compare a row with its baseline, on the same videos and with the same seeds."""
    if ranks.shape != baseline.shape:
        raise ValueError(f"{ranks.shape} ranks of {name} cannot be compared with {baseline.shape} of the baseline")
    differences = (ranks == 0).astype(np.float64) - (baseline == 0)
    low, high = np.percentile(resampled_twice(differences), [2.5, 97.5])
    return RowOutcome(
        name=name,
        top1=tuple((ranks == 0).mean(axis=1).tolist()),
        top5=tuple((ranks < 5).mean(axis=1).tolist()),
        gain=float(differences.mean()),
        gain_interval=(float(low), float(high)),
        gains=tuple(differences.mean(axis=1).tolist()),
    )


def resampled_twice(values: NDArray[np.float64], seed: int = 0, draws: int = RESAMPLES) -> NDArray[np.float64]:
    """Return means of (seeds, videos) with both drawn with replacement."""
    random = np.random.default_rng(seed)
    seeds, videos = values.shape
    means = np.empty(draws)
    for draw in range(draws):
        chosen = values[random.integers(seeds, size=seeds)]
        means[draw] = chosen[:, random.integers(videos, size=videos)].mean()
    return means
