from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tpn_ray.metrics import (
    average_precisions,
    average_views,
    bootstrap_interval,
    confusion_matrix,
    map_interval,
    mcnemar_exact,
    mean_average_precision,
    mean_class_accuracy,
    mean_class_interval,
    probabilities,
    ranks,
    spearman,
    top_k_hits,
    wilson_interval,
)


def test_top_k() -> None:
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]])
    assert top_k_hits(scores, torch.tensor([1, 2]), 1).tolist() == [True, False]
    assert top_k_hits(scores, torch.tensor([2, 2]), 2).tolist() == [True, True]
    assert top_k_hits(scores, torch.tensor([0, 1]), 5).tolist() == [True, True]


def test_views_are_averaged_after_the_softmax_of_each_label_set() -> None:
    scores = torch.tensor([[0.0, 0.0, 5.0], [100.0, 0.0, 5.0]])
    assert average_views(probabilities(scores, (2, 1)).numpy()).tolist() == pytest.approx([0.75, 0.25, 1.0])


def test_ranks_count_from_zero_and_equals_go_by_their_order() -> None:
    scores = np.array([[0.1, 0.7, 0.2], [0.4, 0.4, 0.2], [0.4, 0.4, 0.2]])
    assert ranks(scores, np.array([2, 0, 1])).tolist() == [1, 0, 1]


def test_confusion_matrix_by_hand() -> None:
    matrix = confusion_matrix(np.array([0, 2, 2]), np.array([0, 1, 2]), 3)
    assert matrix.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]


def test_mcnemar_is_the_sign_test() -> None:
    # By hand: 1 head or less, or 7 or more, of 8 fair coins is 2 * (1 + 8) / 256.
    assert mcnemar_exact(7, 1) == mcnemar_exact(1, 7) == pytest.approx(18 / 256)
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(5, 5) == 1.0
    # Dwass's rule for large numbers: 2 * (1 - Phi(|b - c| - 1) / sqrt(b + c)).
    assert mcnemar_exact(5300, 5000) == pytest.approx(math.erfc(299 / math.sqrt(10300) / math.sqrt(2)), rel=0.01)


def test_the_bootstrap_covers_what_it_should() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        low, high = bootstrap_interval(random.random(200) < 0.7, seed=trial)
        covered += low <= 0.7 <= high
    assert 180 <= covered <= 199  # 190 are expected; outside only once in a thousand times
    assert bootstrap_interval(np.array([True, False] * 30)) == bootstrap_interval(np.array([True, False] * 30))


def test_mean_class_interval_is_around_the_accuracy() -> None:
    hits, labels = np.array([True, True, False, False] * 10), np.array([0, 1, 1, 1] * 10)
    low, high = mean_class_interval(hits, labels)
    assert mean_class_accuracy(hits, labels) == pytest.approx((1 + 1 / 3) / 2)
    assert low < (1 + 1 / 3) / 2 < high


def test_spearman_sees_order_only() -> None:
    first = np.array([1.0, 2.0, 3.0, 4.0])
    assert spearman(first, np.exp(first)) == pytest.approx(1)
    assert spearman(first, -first) == pytest.approx(-1)
    # Kendall (1948), ties share their mean rank: by hand, ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4.
    assert spearman(first, np.array([1.0, 2.0, 2.0, 3.0])) == pytest.approx(4.5 / math.sqrt(5 * 4.5))
    assert math.isnan(spearman(first, np.ones(4)))


def test_mean_class_accuracy_gives_every_class_the_same_weight() -> None:
    assert mean_class_accuracy(np.array([True, True, True, False]), np.array([0, 0, 0, 1])) == 0.5
    assert math.isnan(mean_class_accuracy(np.array([], dtype=bool), np.array([], dtype=np.int64)))


def test_wilson_interval_as_published() -> None:
    # Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 begins at 0.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_average_precision_by_hand() -> None:
    """Ranks 1 and 3 are right: 1/2 x 1/1 + 1/2 x 2/3. A class that no video has is left out of the mean."""
    scores = np.array([[0.9, 0.5], [0.8, 0.5], [0.7, 0.5], [0.1, 0.5]], dtype=np.float32)
    labels = np.array([[1, 0], [0, 0], [1, 0], [0, 0]], dtype=np.bool_)
    assert average_precisions(scores, labels)[0] == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert np.isnan(average_precisions(scores, labels)[1])
    assert mean_average_precision(scores, labels) == pytest.approx(5 / 6)
    assert np.isnan(mean_average_precision(scores[:0], labels[:0]))


def test_average_precision_is_that_of_scikit_learn() -> None:
    """With many equal scores, whose order does not matter, and with resampled videos."""
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    scores = random.integers(0, 7, (60, 5)).astype(np.float32) / 7
    labels = random.random((60, 5)) < 0.3
    wanted = metrics.average_precision_score(labels, scores, average=None)
    np.testing.assert_allclose(average_precisions(scores, labels), wanted, rtol=1e-12)
    order = random.permutation(60)
    np.testing.assert_array_equal(average_precisions(scores[order], labels[order]), average_precisions(scores, labels))
    times = np.bincount(random.integers(60, size=60), minlength=60)
    weighted = metrics.average_precision_score(labels, scores, average=None, sample_weight=times)
    np.testing.assert_allclose(average_precisions(scores, labels, times[None])[0], weighted, rtol=1e-12)


def test_the_interval_of_map_holds_it() -> None:
    random = np.random.default_rng(1)
    labels = random.random((80, 4)) < 0.4
    scores = (labels + random.normal(0, 1, (80, 4))).astype(np.float32)
    low, high = map_interval(scores, labels)
    assert low < mean_average_precision(scores, labels) < high
    assert high - low < 0.3
    assert map_interval(scores, labels) == (low, high)
    assert np.isnan(map_interval(scores, np.zeros_like(labels))).all()


def test_classes_by_themselves_are_scored_by_sigmoids() -> None:
    scores = torch.tensor([[0.0, 100.0, -100.0]])
    assert probabilities(scores, (3,), multi_label=True).tolist() == [[0.5, 1.0, 0.0]]
