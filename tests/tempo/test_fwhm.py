"""Widths of curves whose width is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tpn_ray.tempo.fwhm import width


def bell(fwhm: float, centre: float = 50.0, samples: int = 101, floor: float = 0.0) -> np.ndarray:
    return floor + (1 - floor) * np.exp2(-((2 * (np.arange(samples) - centre) / fwhm) ** 2))


@pytest.mark.parametrize("fwhm", [6.0, 10.0, 25.0])
@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_a_bell_has_its_width_whatever_it_stands_on(fwhm: float, floor: float) -> None:
    assert width(bell(fwhm, floor=floor), smooth=1) == pytest.approx(fwhm, rel=0.01)
    assert width(bell(fwhm, floor=floor)) == pytest.approx(fwhm, rel=0.1)


def test_crossings_are_between_frames() -> None:
    triangle = np.array([0.0, 0.0, 1.0, 0.25, 0.0])
    assert width(triangle, smooth=1) == pytest.approx(0.5 + 0.5 / 0.75)


def test_only_the_highest_peak_counts() -> None:
    both = np.maximum(bell(8, centre=20), 0.9 * bell(30, centre=70))
    assert width(both, smooth=1) == pytest.approx(8, rel=0.02)


def test_a_peak_at_the_edge_is_cut_there() -> None:
    assert width(bell(20, centre=0), smooth=1) == pytest.approx(10, rel=0.02)


def test_no_peak_no_tempo() -> None:
    assert math.isnan(width(np.full(10, 0.3)))
    assert math.isnan(width(np.array([0.1, 0.9])))
