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


def probabilities(
    scores: Float[Tensor, "v k"], classes: tuple[int, ...], multi_label: bool = False
) -> Float[Tensor, "v k"]:
    """Return the softmax of each label set's scores; with `multi_label`, the sigmoid of each class's."""
    if multi_label:
        return torch.sigmoid(scores.float())
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


# --- several classes a video


def average_precisions(
    scores: Float[np.ndarray, "n k"], labels: Bool[np.ndarray, "n k"], weights: Int[np.ndarray, "r n"] | None = None
) -> NDArray[np.float64]:
    """Return the average precision of each class, (k,); nan for a class that no video has.

    It is the sum over the thresholds of the precision there, weighted by how much recall each adds, without
    interpolation (as in scikit-learn). Equal scores share a threshold, so the order of the videos does not matter. With
    `weights`, how often each of r resamples has each video, the result is (r, k).
    """
    times = np.ones((1, len(scores)), dtype=np.int64) if weights is None else weights
    found = np.full((len(times), scores.shape[1]), math.nan)
    for place in range(scores.shape[1]) if len(scores) else ():
        order = np.argsort(-scores[:, place], kind="stable")
        values, right = scores[order, place], labels[order, place]
        ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
        seen = times[:, order]
        taken = seen.cumsum(axis=1)[:, ends]
        hits = (seen * right).cumsum(axis=1)[:, ends]
        gained = np.diff(hits, axis=1, prepend=0)
        total = hits[:, -1]
        has = total > 0
        found[has, place] = (gained * hits / np.maximum(taken, 1))[has].sum(axis=1) / total[has]
    return found if weights is not None else found[0]


def mean_average_precision(scores: Float[np.ndarray, "n k"], labels: Bool[np.ndarray, "n k"]) -> float:
    """Return the mean of the average precisions of the classes that occur (mAP); nan if none does."""
    return float(_mean_of_numbers(average_precisions(scores, labels)[None])[0])


def resampled_average_precisions(
    scores: Float[np.ndarray, "n k"], labels: Bool[np.ndarray, "n k"], seed: int = 0, draws: int = RESAMPLES
) -> NDArray[np.float64]:
    """Return the mAP of `draws` resamples of the videos with replacement, fixed by the seed."""
    random, count = np.random.default_rng(seed), len(scores)
    if count == 0:
        return np.full(draws, math.nan)
    at_once = max(1, RESAMPLED_AT_ONCE // count)
    parts = []
    for begin in range(0, draws, at_once):
        drawn = random.integers(count, size=(min(at_once, draws - begin), count))
        times = np.stack([np.bincount(one, minlength=count) for one in drawn])
        parts.append(_mean_of_numbers(average_precisions(scores, labels, times)))
    return np.concatenate(parts)


def map_interval(
    scores: Float[np.ndarray, "n k"], labels: Bool[np.ndarray, "n k"], seed: int = 0
) -> tuple[float, float]:
    """Return the 95% percentile-bootstrap interval of mAP; nan if no class occurs."""
    if not labels.any():
        return math.nan, math.nan
    low, high = np.nanpercentile(resampled_average_precisions(scores, labels, seed), [2.5, 97.5])
    return float(low), float(high)


def _mean_of_numbers(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each row over what is not nan; nan for a row of nothing else."""
    there = ~np.isnan(values)
    counts = there.sum(axis=1)
    means: NDArray[np.float64] = np.where(
        counts > 0, np.where(there, values, 0.0).sum(axis=1) / np.maximum(counts, 1), math.nan
    )
    return means
