from __future__ import annotations

import pytest
import torch

from tpn_ray.model.heads import AuxiliaryHead, ClassificationHead


def test_scores_are_linear_in_the_mean_feature() -> None:
    head = ClassificationHead(6, 4, dropout=0.5).eval()
    features = torch.randn(2, 6, 3, 5, 4)
    expected = features.mean((2, 3, 4)) @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(head(features), expected)


@pytest.mark.parametrize(
    ("computed", "given"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_scores_are_float32_at_least(computed: torch.dtype, given: torch.dtype) -> None:
    head = ClassificationHead(6, 4, dropout=0.0).to(computed)
    assert head(torch.randn(2, 6, 1, 2, 2).to(computed)).dtype == given


def test_dropout_acts_in_training_only() -> None:
    head = ClassificationHead(64, 4, dropout=0.9)
    features = torch.randn(1, 64, 1, 1, 1)
    torch.manual_seed(0)
    assert not torch.equal(head(features), head(features))
    head.eval()
    assert torch.equal(head(features), head(features))


def test_the_auxiliary_head_doubles_the_channels_first() -> None:
    head = AuxiliaryHead(8, 5, dropout=0.0)
    assert head.deepen.conv.weight.shape == (16, 8, 3, 3)
    assert head(torch.randn(2, 8, 3, 5, 5)).shape == (2, 5)
