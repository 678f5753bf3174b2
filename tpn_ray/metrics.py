"""Scores -> numbers people quote: top-k, mean class accuracy, averages over views, intervals. Runs anywhere."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor


def top_k_hits(scores: Float[Tensor, "n k"], labels: Int[Tensor, " n"], top: int) -> Bool[Tensor, " n"]:
    """Whether the right class is among the `top` highest scores (all classes count where there are fewer)."""
    best = scores.topk(min(top, scores.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(dim=1)


def average_views(scores: Float[Tensor, "v k"], classes: tuple[int, ...]) -> Float[Tensor, " k"]:
    """Mean over the views of a video of the softmax of each label set (paper, section 4: "average the softmax")."""
    parts = torch.split(scores.float(), list(classes), dim=1)
    return torch.cat([torch.softmax(part, dim=1).mean(dim=0) for part in parts])


def mean_class_accuracy(hits: NDArray[np.bool_], labels: NDArray[np.int64]) -> float:
    """Mean over the classes that occur of the share of hits in each; nan for no videos."""
    if len(labels) == 0:
        return math.nan
    return float(np.mean([hits[labels == label].mean() for label in np.unique(labels)]))


def wilson_interval(hits: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of an accuracy (Wilson, 1927), 95 % by default; (0, 1) for no videos."""
    if total == 0:
        return 0.0, 1.0
    share, spread = hits / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)
