"""What holds for every backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tpn_ray.errors import ConfigError
from tpn_ray.model import layers
from tpn_ray.model.backbones import BACKBONES
from tpn_ray.model.backbones.spec import STEM
from tpn_ray.model.recognizer import ModelConfig, build_model
from tpn_ray.model.weights import load_weights, save_mmaction2

TOYS = [name for name in BACKBONES if name.endswith("_toy")]
FRAMES, PX = 16, 48
EXACT = {"c3d": (16, 112), "s3d": (16, 64), "s3d_toy": (16, 64)}
"""Frames and pixels, where a fully connected layer fixes them or pools round down."""


@pytest.mark.parametrize("name", BACKBONES)
def test_stages_have_the_channels_and_strides_of_the_spec(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "batch_norm", lambda norm, x: x)  # slow without data, and keeps shapes
    spec = BACKBONES[name]
    frames, px = EXACT.get(name, (FRAMES, PX))
    with torch.device("meta"):
        backbone = spec.build(max(spec.stages))
        levels = backbone(torch.empty(2, 3, frames, px, px))
    expected = {
        number: (2, stage.channels, -(-frames // stage.time), *[-(-px // stage.space)] * 2)
        for number, stage in spec.stages.items()
    }
    assert {number: tuple(level.shape) for number, level in levels.items()} == expected
    assert backbone.channels == {number: stage.channels for number, stage in spec.stages.items()}
    stages = [spec.stage_of(parameter) for parameter, _ in backbone.named_parameters()]
    assert set(stages) == {STEM, *spec.stages}


@pytest.mark.parametrize("name", TOYS)
def test_stages_above_the_top_are_not_built(name: str) -> None:
    spec = BACKBONES[name]
    numbers = sorted(spec.stages)
    with torch.device("meta"):
        small, whole = (spec.build(numbers[-1 - cut]) for cut in (1, 0))
        levels = small(torch.empty(1, 3, FRAMES, PX, PX))
    assert list(levels) == list(small.channels) == numbers[:-1]
    assert set(small.state_dict()) < set(whole.state_dict())


def clips() -> torch.Tensor:
    return torch.randn(2, 3, FRAMES, PX, PX)


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("neck", ["tpn", "none"])
def test_a_step_of_training_reaches_every_weight(name: str, neck: Any) -> None:
    torch.manual_seed(0)
    levels = (4, 5)
    model = build_model(ModelConfig(backbone=name, classes=3, neck=neck, levels=levels, alpha=(1, 2)))
    for module in model.modules():  # residual branches and attention start at zero
        if isinstance(module, torch.nn.BatchNorm2d) and not module.weight.any():
            torch.nn.init.ones_(module.weight)
    scores = model(clips())
    loss = sum(F.cross_entropy(part, torch.tensor([1, 2])) for part in (scores.action, *scores.auxiliary))
    loss.backward()  # type: ignore[union-attr]
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("name", [name for name in TOYS if "mmaction2" in BACKBONES[name].names])
@pytest.mark.parametrize("neck", ["tpn", "none"])
def test_weights_return_from_mmaction2s_layout(name: str, neck: Any, tmp_path: Path) -> None:
    config = ModelConfig(backbone=name, classes=3, neck=neck, alpha=(1, 2))
    one, other = build_model(config).eval(), build_model(config).eval()
    save_mmaction2(one, f"{tmp_path}/weights.pth")
    report = load_weights(other, f"{tmp_path}/weights.pth")
    assert (report.layout, report.unused, report.missing) == ("mmaction2", (), ())
    x = clips()
    assert torch.equal(one(x).action, other(x).action)


@pytest.mark.parametrize("name", TOYS)
def test_clips_that_do_not_fit_are_refused(name: str) -> None:
    spec = BACKBONES[name]
    model = build_model(ModelConfig(backbone=name, classes=3, alpha=(1, 2)))
    if spec.least_frames > 1:
        with pytest.raises(ConfigError, match=f"{name} needs at least {spec.least_frames}, in multiples"):
            model(torch.zeros(1, 3, spec.least_frames - 1, PX, PX))
    if spec.frames_multiple > 1:
        with pytest.raises(ConfigError, match=f"in multiples of {spec.frames_multiple}"):
            model(torch.zeros(1, 3, FRAMES + 1, PX, PX))
    if spec.least_px > 1:
        with pytest.raises(ConfigError, match=f"{name} needs at least {spec.least_px} x {spec.least_px}"):
            model(torch.zeros(1, 3, FRAMES, PX, spec.least_px - 1))
