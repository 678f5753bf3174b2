"""Metrics computed from scores: top-k, mean class accuracy, averages over views, intervals. Runs anywhere.

scipy.stats, which takes a second to import, is imported where it is used.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor


def top_k_hits(scores: Float[Tensor, "n k"], labels: Int[Tensor, " n"], top: int) -> Bool[Tensor, " n"]:
    """Return whether the right class is among the `top` highest scores (or all of them, if there are fewer classes)."""
    best = scores.topk(min(top, scores.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(dim=1)


def probabilities(scores: Float[Tensor, "v k"], classes: tuple[int, ...]) -> Float[Tensor, "v k"]:
    """Return the softmax of each label set's scores."""
    return torch.cat([torch.softmax(part, dim=1) for part in torch.split(scores.float(), list(classes), dim=1)], dim=1)


def average_views(scores: Float[np.ndarray, "v k"]) -> NDArray[np.float32]:
    """Average a video's softmax scores over its views, giving (k,) (paper, section 4: "average the softmax")."""
    averaged: NDArray[np.float32] = scores.mean(axis=0, dtype=np.float64).astype(np.float32)
    return averaged


def mean_class_accuracy(hits: NDArray[np.bool_], labels: NDArray[np.int64]) -> float:
    """Return the mean of the per-class hit rates over the classes that occur; nan for no videos."""
    if len(labels) == 0:
        return math.nan
    return float(np.mean([hits[labels == label].mean() for label in np.unique(labels)]))


def wilson_interval(hits: int, total: int) -> tuple[float, float]:
    """Return the 95% interval of an accuracy (Wilson, 1927); (0, 1) for no videos."""
    from scipy import stats

    if total == 0:
        return 0.0, 1.0
    interval = stats.binomtest(hits, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def ranks(scores: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"]) -> NDArray[np.int64]:
    """Return the rank of the right class in each row, from 0; among equal scores the lower class comes first."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    before = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < labels[:, None]))
    places: NDArray[np.int64] = before.sum(axis=1)
    return places


def confusion_matrix(predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Count the videos of each class (row) by predicted class (column), as an array (classes, classes)."""
    counts = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes)


# --- intervals and tests

RESAMPLES = 2000
RESAMPLED_AT_ONCE = 4_000_000


def resampled_means(values: Float[np.ndarray, " n"], seed: int = 0, draws: int = RESAMPLES) -> NDArray[np.float64]:
    """Return the means of `draws` resamples of n values with replacement (Efron's bootstrap), fixed by the seed."""
    random = np.random.default_rng(seed)
    at_once = max(1, RESAMPLED_AT_ONCE // max(len(values), 1))
    parts = [
        values[random.integers(len(values), size=(min(at_once, draws - begin), len(values)))].mean(axis=1)
        for begin in range(0, draws, at_once)
    ]
    return np.concatenate(parts)


def bootstrap_interval(values: Bool[np.ndarray, " n"] | Float[np.ndarray, " n"], seed: int = 0) -> tuple[float, float]:
    """Return the 95% percentile-bootstrap interval of a mean; nan for no values."""
    if len(values) == 0:
        return math.nan, math.nan
    low, high = np.percentile(resampled_means(values.astype(np.float64), seed), [2.5, 97.5])
    return float(low), float(high)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value that two classifiers are equally good, from the videos that only one gets right.

    The test is exact (McNemar 1947, with the binomial distribution): each such video is a fair coin.
    """
    from scipy import stats

    total = only_first + only_second
    return float(stats.binomtest(only_first, total).pvalue) if total else 1.0


def spearman(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]) -> float:
    """Return the rank correlation; ties share the mean of their ranks; nan if one side is constant."""
    from scipy import stats

    return float(stats.spearmanr(first, second).statistic) if _vary(first, second) else math.nan


def pearson(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]) -> float:
    """Return the linear correlation; nan if one side is constant."""
    from scipy import stats

    return float(stats.pearsonr(first, second).statistic) if _vary(first, second) else math.nan


def _vary(*sides: Float[np.ndarray, " n"]) -> bool:
    return all(len(side) > 1 and np.ptp(side) > 0 for side in sides)


def mean_class_interval(hits: NDArray[np.bool_], labels: NDArray[np.int64], seed: int = 0) -> tuple[float, float]:
    """Return the 95% interval of the mean class accuracy, by resampling within each class; nan for no videos."""
    if len(labels) == 0:
        return math.nan, math.nan
    classes = np.unique(labels)
    drawn = [resampled_means(hits[labels == label].astype(np.float64), seed + int(label)) for label in classes]
    low, high = np.percentile(np.mean(drawn, axis=0), [2.5, 97.5])
    return float(low), float(high)
