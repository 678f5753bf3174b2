"""Comparison of two evaluations: what `jobs/compare.py` computes, for Python. Runs anywhere."""

from __future__ import annotations

from tpn_ray.predict import compare as comparison
from tpn_ray.predict.compare import Comparison
from tpn_ray.predict.table import read_scores


def compare(first: str, second: str) -> list[Comparison]:
    """Test whether the second of two networks is better, on the videos that both have scores of.

    Both are folders that `tpn_ray.evaluate` or jobs/evaluate.py wrote. Returns one comparison for each label set.
    Raises ConfigError if the two do not have the same videos and classes.
    """
    return comparison.compare(read_scores(first), read_scores(second))
