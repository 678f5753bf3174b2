"""The paper's figures 1, 4 and 5 from numbers of one's own, as PNG files. Pure; runs anywhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tpn_ray.predict.plots import BLUE, GREY, ORANGE, figure, png
from tpn_ray.tempo.gain import Bin, ClassTempo, Line

NAMED = 40


def variances(classes: Sequence[ClassTempo]) -> bytes:
    """Figure 1, bottom: the variance of tempo of every class, greatest first."""
    ordered = sorted(classes, key=lambda one: -one.variance)
    made, axes = figure(8, 4.2 if len(ordered) <= NAMED else 3.2)
    axes.bar(range(len(ordered)), [one.variance for one in ordered], color=BLUE)
    axes.set_ylabel("variance of the width (s²)")
    if len(ordered) <= NAMED:
        names = [one.name for one in ordered]
        axes.set_xticks(range(len(ordered)), names, rotation=50, ha="right", rotation_mode="anchor")
    else:
        axes.set_xlabel(f"{len(ordered)} classes, by variance")
    axes.set_title("Variance of visual tempo of each class", fontsize=10, loc="left")
    return png(made)


def gain_against_variance(
    variance: NDArray[np.float64], gains: NDArray[np.float64], bins: Sequence[Bin], line: Line
) -> bytes:
    """Figure 4: the gain of every class, the means of the bins, and the line over the classes."""
    made, axes = figure(6.4, 4.2)
    axes.scatter(variance, 100 * gains, s=12, color=GREY, alpha=0.5, label="classes")
    axes.scatter([b.variance for b in bins], [100 * b.gain for b in bins], s=42, color=ORANGE, label="means of bins")
    if not np.isnan(line.slope):
        ends = np.array([variance.min(), variance.max()])
        axes.plot(ends, 100 * (line.intercept + line.slope * ends), color=BLUE, label="least squares over classes")
        low, high = line.slope_interval
        title = f"slope {100 * line.slope:+.2f} points per s² (95 %: {100 * low:+.2f} to {100 * high:+.2f})"
        axes.set_title(title, fontsize=10, loc="left")
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xlabel("variance of visual tempo (s²)")
    axes.set_ylabel("gain in top-1 (percentage points)")
    axes.legend(frameon=False, fontsize=9)
    return png(made)


def against_stride(
    strides: Sequence[int], first: Sequence[float], second: Sequence[float], trained: int, names: tuple[str, str]
) -> bytes:
    """Figure 5: top-1 of both when the same videos are played faster or slower."""
    made, axes = figure(6.4, 4.0)
    for values, name, colour, style in zip((first, second), names, (BLUE, ORANGE), ("o--", "o-"), strict=True):
        axes.plot(strides, [100 * value for value in values], style, color=colour, label=name, markersize=5)
    axes.axvline(trained, color=GREY, linewidth=0.8, linestyle=":")
    axes.annotate("trained", (trained, axes.get_ylim()[0]), xytext=(4, 4), textcoords="offset points", color=GREY)
    axes.set_xticks(list(strides))
    axes.set_xlabel("stride in frames (to the right: played faster)")
    axes.set_ylabel("top-1 (%)")
    axes.legend(frameon=False, fontsize=9)
    return png(made)


def measured_against_true(true: NDArray[np.float64], measured: NDArray[np.float64], correlation: float) -> bytes:
    """Where the true tempo is known."""
    made, axes = figure(5.0, 4.4)
    axes.scatter(true, measured, s=12, color=BLUE, alpha=0.6)
    axes.set_xlabel("true width (s)")
    axes.set_ylabel("measured width (s)")
    axes.set_title(f"Spearman {correlation:.3f}", fontsize=10, loc="left")
    return png(made)
