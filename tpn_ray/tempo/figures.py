"""Draws the paper's figures 1, 4, and 5 from given numbers, as PNG files. Pure; runs anywhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tpn_ray.predict.plots import BLUE, GREY, NAMED, ORANGE, figure, png, short, title
from tpn_ray.tempo.gain import Bin, ClassTempo, Line


def variances(classes: Sequence[ClassTempo]) -> bytes:
    """Draw figure 1, bottom: the variance of tempo of every class, greatest first."""
    ordered = sorted(classes, key=lambda one: -one.variance)
    names = [short(one.name) for one in ordered]
    made, axes = figure(8, 3.2 + (0.07 * max(map(len, names), default=0) if len(ordered) <= NAMED else 0))
    axes.bar(range(len(ordered)), [one.variance for one in ordered], color=BLUE)
    axes.set_ylabel("variance of the width (s²)")
    if len(ordered) <= NAMED:
        axes.set_xticks(range(len(ordered)), names, rotation=50, ha="right", rotation_mode="anchor")
    else:
        axes.set_xlabel(f"{len(ordered)} classes, by variance")
    title(made, "Variance of visual tempo of each class")
    return png(made)


def gain_against_variance(
    variance: NDArray[np.float64], gains: NDArray[np.float64], bins: Sequence[Bin], line: Line
) -> bytes:
    """Draw figure 4: the gain of every class, the means of the bins, and the line over the classes."""
    made, axes = figure(6.4, 4.2)
    axes.scatter(variance, 100 * gains, s=12, color=GREY, alpha=0.5, label="classes")
    axes.scatter([b.variance for b in bins], [100 * b.gain for b in bins], s=42, color=ORANGE, label="means of bins")
    if not np.isnan(line.slope):
        ends = np.array([variance.min(), variance.max()])
        axes.plot(ends, 100 * (line.intercept + line.slope * ends), color=BLUE, label="least squares over classes")
        low, high = line.slope_interval
        said = f"slope {100 * line.slope:+.2f} points per s² (95 %: {100 * low:+.2f} to {100 * high:+.2f})"
        title(made, said)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xlabel("variance of visual tempo (s²)")
    axes.set_ylabel("gain in top-1 (percentage points)")
    _legend(made)
    return png(made)


def against_stride(
    strides: Sequence[int], first: Sequence[float], second: Sequence[float], trained: int, names: tuple[str, str]
) -> bytes:
    """Draw figure 5: top-1 of both networks when the same videos are played faster or slower."""
    made, axes = figure(6.4, 4.0)
    for values, name, colour, style in zip((first, second), names, (BLUE, ORANGE), ("o--", "o-"), strict=True):
        axes.plot(strides, [100 * value for value in values], style, color=colour, label=name, markersize=5)
    axes.axvline(trained, color=GREY, linewidth=0.8, linestyle=":", label="stride in training")
    axes.set_xticks(list(strides))
    axes.set_xlabel("stride in frames (to the right: played faster)")
    axes.set_ylabel("top-1 (%)")
    _legend(made)
    return png(made)


def measured_against_true(true: NDArray[np.float64], measured: NDArray[np.float64], correlation: float) -> bytes:
    """Draw measured against true tempo."""
    made, axes = figure(5.0, 4.4)
    axes.scatter(true, measured, s=12, color=BLUE, alpha=0.6)
    axes.set_xlabel("true width (s)")
    axes.set_ylabel("measured width (s)")
    title(made, f"Spearman {correlation:.3f}")
    return png(made)


def _legend(made: Figure) -> None:
    """Place the legend below the axes, where it hides no point."""
    made.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
