"""Seeds and videos both vary, and both are in the interval."""

from __future__ import annotations

import numpy as np
import pytest

from tpn_ray.reproduce.outcome import outcome


def runs(tops: list[float], videos: int = 400, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.stack([np.where(random.random(videos) < top, 0, 4) for top in tops])


def test_a_clear_gain_is_one() -> None:
    found = outcome("TPN", runs([0.9, 0.9, 0.88]), runs([0.7, 0.72, 0.7], seed=1))
    assert found.gain == pytest.approx(0.19, abs=0.05)
    assert found.gain_interval[0] > 0
    assert found.is_better
    assert found.top5 == (1.0, 1.0, 1.0)
    assert found.mean == pytest.approx(np.mean(found.top1))
    assert found.spread == pytest.approx(np.std(found.top1, ddof=1))


def test_one_lucky_seed_is_not_enough() -> None:
    """One seed of three failed by chance: over videos alone the difference would look certain."""
    found = outcome("TPN", runs([0.9, 0.9, 0.5]), runs([0.7, 0.7, 0.7], seed=1))
    assert found.gain > 0.05
    assert found.gain_interval[0] < 0
    assert not found.is_better


def test_against_itself_nothing_is_gained() -> None:
    same = runs([0.8, 0.8])
    found = outcome("none", same, same)
    assert (found.gain, found.gain_interval) == (0, (0, 0))
    assert not found.is_better
    with pytest.raises(ValueError, match="cannot be compared"):
        outcome("none", same, runs([0.8]))
