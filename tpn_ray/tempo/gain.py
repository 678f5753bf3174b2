"""Relates the gain of one network over another to the variance of tempo: the paper's figures 1 and 4. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from tpn_ray.errors import ConfigError
from tpn_ray.metrics import RESAMPLES, pearson, spearman


@dataclass(frozen=True)
class ClassTempo:
    """The tempo of one class's videos."""

    name: str
    videos: int
    """Number of videos whose tempo could be measured."""
    mean_seconds: float
    variance: float
    """Variance of the widths, in seconds squared (divided by n - 1)."""


@dataclass(frozen=True)
class Bin:
    """Classes of similar variance."""

    classes: int
    variance: float
    gain: float
    """Mean gain over its classes, as `variance` is their mean variance."""


@dataclass(frozen=True)
class Line:
    """Least squares over classes: gain = intercept + slope * variance."""

    slope: float
    slope_interval: tuple[float, float]
    """95% interval, by resampling classes."""
    intercept: float
    correlation: float
    rank_correlation: float


def class_tempos(names: Sequence[str], seconds: Float[np.ndarray, " n"]) -> list[ClassTempo]:
    """Group videos by class name; classes with fewer than two measured videos have no variance and are left out."""
    labels, found = np.array(names), []
    for name in sorted(set(names)):
        own = seconds[(labels == name) & ~np.isnan(seconds)]
        if len(own) >= 2:
            found.append(ClassTempo(name, len(own), float(own.mean()), float(own.var(ddof=1))))
    return found


def bins(variances: Float[np.ndarray, " c"], gains: Float[np.ndarray, " c"], classes_per_bin: int) -> list[Bin]:
    """Bin classes by ascending variance, `classes_per_bin` (the paper: 10) at a time; the last bin may hold fewer."""
    if classes_per_bin < 1:
        raise ConfigError(f"classes_per_bin={classes_per_bin} must be at least 1")
    order = np.argsort(variances, kind="stable")
    parts = [order[at : at + classes_per_bin] for at in range(0, len(order), classes_per_bin)]
    return [Bin(len(part), float(variances[part].mean()), float(gains[part].mean())) for part in parts]


def fit_line(variances: Float[np.ndarray, " c"], gains: Float[np.ndarray, " c"], seed: int = 0) -> Line:
    """Fit the line over all classes; over the bins it would look more certain than it is."""
    if len(variances) < 3 or np.ptp(variances) == 0:
        return Line(math.nan, (math.nan, math.nan), math.nan, math.nan, math.nan)
    slope, intercept = _slope(variances, gains)
    random = np.random.default_rng(seed)
    slopes = []
    for _ in range(RESAMPLES):
        drawn = random.integers(len(variances), size=len(variances))
        if np.ptp(variances[drawn]):
            slopes.append(_slope(variances[drawn], gains[drawn])[0])
    low, high = np.percentile(slopes, [2.5, 97.5])
    return Line(slope, (float(low), float(high)), intercept, pearson(variances, gains), spearman(variances, gains))


def _slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    around = x - x.mean()
    slope = float((around * y).sum() / (around**2).sum())
    return slope, float(y.mean() - slope * x.mean())
