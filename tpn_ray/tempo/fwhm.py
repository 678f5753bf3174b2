"""Visual tempo of a video: how long its class is visible in single frames. Pure; runs anywhere.

The paper (section 4.3) takes the full width at half maximum of the probability that a frame-wise classifier assigns to
the video's class. Two points it leaves open are settled here: the width is that of the peak with the maximum, with
crossings interpolated between frames; and half of the maximum is counted from the probability of a frame without the
action (the curve's minimum), because a classifier is never entirely certain that nothing happens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tempo:
    """The tempo of one video."""

    id: str
    name: str
    """Its class."""
    seconds: float
    """Full width at half maximum; nan if there is no peak or the video could not be used."""
    peak: float
    """The highest probability of the class in a single frame."""


def width(curve: Float[np.ndarray, " t"], smooth: int = 3) -> float:
    """Return the full width at half maximum in samples; nan for a curve without a peak. A peak at the edge is cut off.

    `smooth` is the number of samples of the moving mean that is applied first.
    """
    if len(curve) < 3:
        return math.nan
    level = _smoothed(curve.astype(np.float64), smooth)
    top = int(np.argmax(level))
    half = (level[top] + level.min()) / 2
    if level[top] - level.min() < 1e-9:
        return math.nan
    return _crossing(level[top:], half) + _crossing(level[top::-1], half)


def _smoothed(curve: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return the moving mean over `count` samples, over fewer at the edges."""
    window = np.ones(count)
    smoothed: NDArray[np.float64] = np.convolve(curve, window, "same") / np.convolve(
        np.ones_like(curve), window, "same"
    )
    return smoothed


def _crossing(levels: NDArray[np.float64], half: float) -> float:
    """Return the samples from the first to where the curve falls through `half`, or to the end if it never does."""
    below = np.flatnonzero(levels < half)
    if len(below) == 0:
        return float(len(levels) - 1)
    at = int(below[0])
    return at - 1 + float((levels[at - 1] - half) / (levels[at - 1] - levels[at]))
