from __future__ import annotations

import pytest
import torch

from tests.model.backbones.comparison import check
from tpn_ray.model.backbones import BACKBONES


@pytest.mark.parametrize("name", ["ircsn_r50", "ipcsn_r50"])
def test_features_are_the_published(name: str) -> None:
    check(name, name)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("ircsn_r101", 21_394_176),
        ("ircsn_r152", 28_883_968),
        ("ipcsn_r152", 32_196_992),
    ],
)
def test_parameters_are_the_published_number(name: str, parameters: int) -> None:
    with torch.device("meta"):
        backbone = BACKBONES[name].build(5)
    assert sum(p.numel() for p in backbone.parameters()) == parameters


@pytest.mark.parametrize("name", ["ircsn_toy", "ipcsn_toy"])
def test_3x3x3_convolutions_are_depthwise_and_norms_have_the_published_epsilon(name: str) -> None:
    backbone = BACKBONES[name].build(5)
    for module in backbone.stages.modules():  # type: ignore[operator, union-attr]
        if isinstance(module, torch.nn.Conv3d):
            assert module.groups == module.in_channels == module.out_channels
    assert {module.eps for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)} == {1e-3}
