from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tpn_ray.metrics import average_views, mean_class_accuracy, top_k_hits, wilson_interval


def test_top_k() -> None:
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]])
    assert top_k_hits(scores, torch.tensor([1, 2]), 1).tolist() == [True, False]
    assert top_k_hits(scores, torch.tensor([2, 2]), 2).tolist() == [True, True]
    assert top_k_hits(scores, torch.tensor([0, 1]), 5).tolist() == [True, True]


def test_views_are_averaged_after_the_softmax_of_each_label_set() -> None:
    scores = torch.tensor([[0.0, 0.0, 5.0], [100.0, 0.0, 5.0]])
    assert average_views(scores, (2, 1)).tolist() == pytest.approx([0.75, 0.25, 1.0])


def test_mean_class_accuracy_gives_every_class_the_same_weight() -> None:
    assert mean_class_accuracy(np.array([True, True, True, False]), np.array([0, 0, 0, 1])) == 0.5
    assert math.isnan(mean_class_accuracy(np.array([], dtype=bool), np.array([], dtype=np.int64)))


def test_wilson_interval_as_published() -> None:
    # Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 begins at 0.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)
