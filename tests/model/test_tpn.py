"""The neck against the published formulation (tpn_ray/model/plain.py: Conv3d and MaxPool3d), in double precision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tpn_ray.model.plain import plain_forward
from tpn_ray.model.recognizer import ModelConfig, Recognizer, Scores, build_model
from tpn_ray.model.tpn import TemporalPyramid, bottom_up, top_down

TOY = ModelConfig(backbone="slowonly_toy", classes=5, dropout=0.0, alpha=(4, 8))
DEEP = replace(TOY, levels=(2, 3, 4, 5), alpha=(1, 2, 4, 8))
SINGLE = replace(TOY, levels=(5,), rates=(1, 2, 4), alpha=(1, 1, 2))

CASES = {
    "cascade": (TOY, 8),
    "parallel": (replace(TOY, flow="parallel"), 8),
    "top_down": (replace(TOY, flow="top_down"), 8),
    "bottom_up": (replace(TOY, flow="bottom_up"), 8),
    "isolation": (replace(TOY, flow="isolation"), 8),
    "published alpha": (replace(TOY, alpha=(8, 8)), 8),
    "published alpha, 32 frames": (replace(TOY, alpha=(16, 32)), 32),
    "published alpha on a long clip": (replace(TOY, alpha=(8, 8)), 20),
    "short clip": (TOY, 4),
    "odd clip": (TOY, 11),
    "one frame": (TOY, 1),
    "three levels": (replace(TOY, levels=(3, 4, 5), alpha=(2, 4, 8), flow="parallel"), 8),
    "four levels": (DEEP, 8),
    "without res5": (replace(TOY, levels=(3, 4)), 8),
    "single depth": (SINGLE, 8),
    "single depth, parallel": (replace(SINGLE, flow="parallel"), 9),
    "baseline": (replace(TOY, neck="none"), 8),
    "tsn": (replace(TOY, backbone="tsn_toy", alpha=(8, 8)), 8),
    "tsm": (replace(TOY, backbone="tsm_toy", alpha=(8, 8)), 8),
    "tsm in place": (replace(TOY, backbone="tsm_toy", shift="inplace"), 8),
}


def randomised(config: ModelConfig) -> Recognizer:
    """A double-precision network none of whose parameters sits at a special value."""
    torch.manual_seed(0)
    model = build_model(config, "fast")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.double()


def outcome(model: Recognizer, forward: Any, clips: torch.Tensor) -> list[torch.Tensor]:
    """Scores, auxiliary scores, and the gradient of every parameter."""
    model.zero_grad()
    scores = forward(clips)
    parts = [scores.action, *scores.auxiliary]
    sum((part.double() * torch.linspace(-1, 1, part.numel()).view_as(part)).sum() for part in parts).backward()
    return [*parts, *[p.grad.clone() for p in model.parameters()]]


@pytest.mark.parametrize("case", CASES)
def test_scores_and_gradients_equal_the_plain_formulation(case: str) -> None:
    config, t = CASES[case]
    model = randomised(config).train()
    clips = torch.randn(2, 3, t, 40, 48, dtype=torch.float64)
    ours = outcome(model, model, clips)
    plain = outcome(model, lambda clips: Scores(*plain_forward(model, clips)), clips)
    assert len(ours) == len(plain)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_evaluation_equals_the_plain_formulation(case: str) -> None:
    config, t = CASES[case]
    model = randomised(config).eval()
    clips = torch.randn(1, 3, t, 33, 47, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(clips).action.double(), plain_forward(model, clips)[0], rtol=1e-5, atol=1e-6)


def neck(**options: Any) -> TemporalPyramid:
    defaults = {"rates": (1, 1), "alpha": (2, 4), "spatial_modulation": True, "temporal_modulation": True}
    return TemporalPyramid((32, 64), **{"flow": "cascade", **defaults, **options})


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
