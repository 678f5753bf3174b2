"""The neck against the same formulas with Conv3d and MaxPool3d, in double precision, and what its parts do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tpn_ray.model.backbones.spec import Stage
from tpn_ray.model.layers import ConvNorm
from tpn_ray.model.tpn import TemporalPyramid, bottom_up, top_down

FOUR = {"channels": (8, 16, 32, 64), "rates": (1, 1, 1, 1), "alpha": (1, 2, 4, 8)}
SINGLE = {"channels": (64, 64, 64), "rates": (1, 2, 4), "alpha": (1, 1, 2)}

CASES: dict[str, tuple[dict[str, Any], int]] = {
    "cascade": ({}, 8),
    "parallel": ({"flow": "parallel"}, 8),
    "top_down": ({"flow": "top_down"}, 8),
    "bottom_up": ({"flow": "bottom_up"}, 8),
    "isolation": ({"flow": "isolation"}, 8),
    "published alpha": ({"alpha": (8, 8)}, 8),
    "published alpha, 32 frames": ({"alpha": (16, 32)}, 32),
    "published alpha on a long clip": ({"alpha": (8, 8)}, 20),
    "short clip": ({"alpha": (4, 8)}, 4),
    "odd clip": ({"alpha": (4, 8)}, 11),
    "one frame": ({}, 1),
    "four levels": (FOUR, 8),
    "four levels, parallel": ({**FOUR, "flow": "parallel"}, 9),
    "single depth": (SINGLE, 8),
    "single depth, parallel": ({**SINGLE, "flow": "parallel"}, 9),
    "no spatial modulation": ({**FOUR, "spatial_modulation": False}, 8),
    "no temporal modulation": ({**FOUR, "temporal_modulation": False}, 8),
}


def neck(**options: Any) -> TemporalPyramid:
    channels = options.pop("channels", (32, 64))
    depth = len(set(channels))
    stages = [Stage(count, space=2 ** (6 - depth + i)) for i, count in enumerate(sorted(set(channels)))]
    defaults = {
        "stages": [stages[sorted(set(channels)).index(count)] for count in channels],
        "flow": "cascade",
        "rates": (1, 1),
        "alpha": (2, 4),
        "spatial_modulation": True,
        "temporal_modulation": True,
    }
    return TemporalPyramid(**{**defaults, **options})


def conv3d(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution of the neck over n c t h w."""
    kernel, (stride, _) = convolution.weight, convolution.stride
    high, wide = kernel.shape[2:]
    if high != wide:
        return F.conv3d(x, kernel.unsqueeze(4), padding=(high // 2, 0, 0), groups=convolution.groups)
    strides, padding = (1, stride, stride), (0, high // 2, high // 2)
    return F.conv3d(x, kernel.unsqueeze(2), None, strides, padding, groups=convolution.groups)


def unit(block: ConvNorm, x: Tensor) -> Tensor:
    norm, y = block.norm, conv3d(block.conv, x)
    statistics = (None, None) if norm.training else (norm.running_mean, norm.running_var)
    return F.relu(F.batch_norm(y, *statistics, norm.weight, norm.bias, norm.training, 0.1, norm.eps))


def pool(x: Tensor, factor: int, side: int) -> Tensor:
    """Max-pool time by `factor` and space to frames of width `side`."""
    window = (factor, *[-(-x.shape[4] // side)] * 2)
    return F.max_pool3d(x, window, window, ceil_mode=True)


def in_three_dimensions(neck: TemporalPyramid, levels: list[Tensor]) -> Tensor:
    """The paper's section 3, with its F_i in `modulated`."""
    strides, modulated = neck.strides(), []
    for i, (level, rate, alpha) in enumerate(zip(levels, neck.rates, neck.alpha, strict=True)):
        x = level[:, :, ::rate]
        for block in neck.spatial[i]:
            x = unit(block, x)
        x = conv3d(neck.temporal[i], x)
        modulated.append(pool(x, alpha, x.shape[4]) if neck.temporal_modulation else x)
    falling = list(modulated)
    for i in reversed(range(len(levels) - 1)):
        falling[i] = falling[i] + F.interpolate(falling[i + 1], size=falling[i].shape[2:], mode="nearest")
    rising = list(falling if neck.flow == "cascade" else modulated)
    for i, convolution in enumerate(neck.down):
        down = conv3d(convolution, rising[i])
        rising[i + 1] = rising[i + 1] + pool(down, strides[i + 1] // strides[i], rising[i + 1].shape[4])
    made = {"isolation": modulated, "top_down": falling, "bottom_up": rising}
    fused = []
    for name, fusion in neck.level_fusion.items():
        side = made[name][-1].shape[4]
        pooled = [pool(x, strides[-1] // stride, side) for x, stride in zip(made[name], strides, strict=True)]
        mixed = [unit(mix, x) for mix, x in zip(fusion.mix, pooled, strict=True)]
        fused.append(unit(fusion.fuse, torch.cat(mixed, dim=1)))
    return fused[0] if neck.pyramid_fusion is None else unit(neck.pyramid_fusion, torch.cat(fused, dim=1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_the_neck_equals_its_formulas_in_three_dimensions(case: str, training: bool) -> None:
    options, t = CASES[case]
    torch.manual_seed(0)
    pyramid = neck(**options).double().train(training)
    for module in pyramid.modules():
        if isinstance(module, nn.BatchNorm2d):  # none of their values is a special one
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    channels = options.get("channels", (32, 64))
    scales = [channels[-1] // count for count in channels]
    features = [
        torch.randn(2, count, t, scale + 1, 3 * scale, dtype=torch.float64, requires_grad=True)
        for count, scale in zip(channels, scales, strict=True)
    ]
    parts = [*features, *pyramid.parameters()]
    theirs = in_three_dimensions(pyramid, features)
    ours = pyramid(features)
    weight = torch.randn_like(theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad((made * weight).sum(), parts) for made in (ours, theirs)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def levels() -> list[torch.Tensor]:
    return [torch.randn(2, 32, 8, 5, 6), torch.randn(2, 64, 8, 3, 3)]


def test_cascade_and_parallel_differ_but_have_the_same_weights() -> None:
    cascade, parallel = neck().eval(), neck(flow="parallel").eval()
    parallel.load_state_dict(cascade.state_dict())
    features = levels()
    assert (cascade(features) - parallel(features)).abs().max() > 1e-2


@pytest.mark.parametrize("flow", ["cascade", "parallel", "isolation", "top_down", "bottom_up"])
@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize("temporal", [True, False])
def test_every_ablation_runs_and_learns(flow: str, spatial: bool, temporal: bool) -> None:
    pyramid = neck(flow=flow, spatial_modulation=spatial, temporal_modulation=temporal)
    result = pyramid(levels())
    assert result.shape == (2, 64, 2 if temporal else 8, 3, 3)
    result.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in pyramid.parameters())


def test_flows_do_not_change_what_they_are_given() -> None:
    given = [torch.randn(1, 4, t, 2, 2) for t in (4, 2, 1)]
    before = [level.clone() for level in given]
    top_down(given)
    bottom_up(given, [nn.Conv2d(4, 4, (3, 1), padding=(1, 0)) for _ in range(2)], (1, 2, 4))
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


def test_top_down_adds_the_enriched_level_above() -> None:
    low, middle, top = torch.randn(1, 4, 4, 2, 2), torch.randn(1, 4, 2, 2, 2), torch.randn(1, 4, 1, 2, 2)
    enriched = top_down([low, middle, top])
    torch.testing.assert_close(enriched[1], middle + top)
    torch.testing.assert_close(enriched[0], low + (middle + top).repeat_interleave(2, dim=2))
    assert enriched[2] is top


def test_alpha_pools_after_the_convolution() -> None:
    pyramid = neck().eval()
    level = levels()[1]
    modulated = pyramid.modulate(1, level)
    kernel = pyramid.temporal[1].weight.unsqueeze(4)
    groups = pyramid.temporal[1].groups
    convolved = torch.nn.functional.conv3d(level, kernel, padding=(1, 0, 0), groups=groups)
    torch.testing.assert_close(modulated, convolved.unflatten(2, (2, 4)).amax(3), rtol=1e-4, atol=1e-5)
