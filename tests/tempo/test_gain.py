"""Variance, bins and the line by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tpn_ray.errors import ConfigError
from tpn_ray.tempo.gain import bins, class_tempos, fit_line


def test_variance_of_each_class_without_what_could_not_be_measured() -> None:
    names = ["run", "run", "run", "sit", "sit", "once"]
    found = class_tempos(names, np.array([1.0, 3.0, math.nan, 2.0, 2.0, 5.0]))
    assert [(one.name, one.videos, one.mean_seconds, one.variance) for one in found] == [
        ("run", 2, 2.0, 2.0),
        ("sit", 2, 2.0, 0.0),
    ]


def test_bins_are_neighbours_by_variance() -> None:
    found = bins(np.array([5.0, 1.0, 3.0]), np.array([0.5, 0.1, 0.3]), 2)
    assert [(one.classes, one.variance, one.gain) for one in found] == [(2, 2.0, 0.2), (1, 5.0, 0.5)]
    with pytest.raises(ConfigError, match="classes_per_bin=0"):
        bins(np.zeros(1), np.zeros(1), 0)


def test_a_line_is_found_with_an_interval_that_covers_it() -> None:
    random = np.random.default_rng(0)
    variances = random.random(80)
    line = fit_line(variances, 0.02 + 0.1 * variances + random.normal(0, 0.02, 80))
    assert line.slope_interval[0] < 0.1 < line.slope_interval[1]
    assert line.slope_interval[0] > 0
    assert line.intercept == pytest.approx(0.02, abs=0.02)
    assert line.rank_correlation > 0.5
    noise = fit_line(variances, random.normal(0, 0.02, 80))
    assert noise.slope_interval[0] < 0 < noise.slope_interval[1]


def test_too_few_classes_have_no_line() -> None:
    assert math.isnan(fit_line(np.array([1.0, 2.0]), np.array([0.0, 1.0])).slope)
