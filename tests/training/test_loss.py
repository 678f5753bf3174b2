from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tpn_ray.errors import ConfigError
from tpn_ray.model.recognizer import Scores
from tpn_ray.recipe import LossConfig
from tpn_ray.training.loss import total_loss
from tpn_ray.training.mixing import Partners

LABELS = torch.tensor([[1], [0], [2]])


def test_the_sum_of_the_paper() -> None:
    main, one, two = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0))
    loss = total_loss(Scores(main, (one, two)), LABELS, (4,), LossConfig(lambdas=(0.5, 0.1)))
    expected = sum(w * F.cross_entropy(s, LABELS[:, 0]) for w, s in ((1, main), (0.5, one), (0.1, two)))
    torch.testing.assert_close(loss, torch.as_tensor(expected))


def test_several_label_sets_share_the_columns() -> None:
    scores = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 2], [0, 0], [2, 3]])
    loss = total_loss(Scores(scores, ()), labels, (3, 4), LossConfig(lambdas=(), label_smoothing=0.1))
    verb = F.cross_entropy(scores[:, :3], labels[:, 0], label_smoothing=0.1)
    noun = F.cross_entropy(scores[:, 3:], labels[:, 1], label_smoothing=0.1)
    torch.testing.assert_close(loss, (verb + noun) / 2)


def test_one_weight_for_each_auxiliary_head() -> None:
    with pytest.raises(ConfigError, match="2 entries, the network has 1"):
        total_loss(Scores(torch.zeros(3, 4), (torch.zeros(3, 4),)), LABELS, (4,), LossConfig(lambdas=(1.0, 1.0)))


def test_a_mixed_clip_counts_for_both_classes() -> None:
    """As the cross-entropy with soft targets."""
    scores = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    partners = Partners(of=torch.tensor([2, 1, 0]), own=torch.tensor([0.6, 1.0, 0.75]))
    config = LossConfig(lambdas=(), label_smoothing=0.1)
    loss = total_loss(Scores(scores, ()), LABELS, (4,), config, partners)
    hot = F.one_hot(LABELS[:, 0], 4).float()
    soft = partners.own[:, None] * hot + (1 - partners.own)[:, None] * hot[partners.of]
    torch.testing.assert_close(loss, F.cross_entropy(scores, soft, label_smoothing=0.1))


def test_each_class_by_itself() -> None:
    """Also of the auxiliary head, and of mixed clips."""
    main, one = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    bce = F.binary_cross_entropy_with_logits
    loss = total_loss(Scores(main, (one,)), labels, (4,), LossConfig(lambdas=(0.5,)), multi_label=True)
    torch.testing.assert_close(loss, bce(main, labels.float()) + 0.5 * bce(one, labels.float()))
    partners = Partners(of=torch.tensor([2, 1, 0]), own=torch.tensor([0.6, 1.0, 0.75]))
    mixed = total_loss(Scores(main, ()), labels, (4,), LossConfig(lambdas=()), partners, multi_label=True)
    soft = torch.tensor([[1, 0.4, 1, 0.4], [0, 0, 0, 0], [1, 0.75, 1, 0.75]])
    torch.testing.assert_close(mixed, bce(main, soft))


@pytest.mark.parametrize("fields", [{"lambdas": (-0.1,)}, {"label_smoothing": 1.0}, {"mixup": -1.0}])
def test_nonsense_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(fields)))):
        LossConfig(**fields)  # type: ignore[arg-type]
