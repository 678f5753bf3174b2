from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from tests.model.backbones.published import check_pooled, drawn, recording
from tpn_ray.errors import ConfigError
from tpn_ray.model.backbones import BACKBONES
from tpn_ray.model.backbones.resnet2d import Size
from tpn_ray.model.backbones.stc import Correlation, Stc, StcSize
from tpn_ray.model.recognizer import ModelConfig, build_model


def published_name(key: str) -> str:
    """The name of an entry of the trunk in the published code."""
    key = re.sub(r"^stem\.conv", "conv1", re.sub(r"^stem\.norm", "bn1", key))
    key = re.sub(r"^stages\.res(\d)\.", lambda match: f"layer{int(match[1]) - 1}.", key)
    key = re.sub(r"\.conv(\d)\.conv\.", r".conv\1.", re.sub(r"\.conv(\d)\.norm\.", r".bn\1.", key))
    return key.replace(".shortcut.conv.", ".downsample.0.").replace(".shortcut.norm.", ".downsample.1.")


def test_the_trunk_is_the_published_codes() -> None:
    recorded = recording("resnext3d_small")
    net = Stc(StcSize(Size((1, 2, 1, 1), width=64), inner=2, groups=32), 5).double().eval()
    state = net.state_dict()
    for key, value in state.items():
        if "correlation" not in key:
            published = tuple(recorded["keys"][published_name(key)])
            state[key] = drawn(published_name(key), published).reshape(value.shape)
    net.load_state_dict(state)
    trunk = [p for name, p in net.named_parameters() if "correlation" not in name]
    assert sum(p.numel() for p in trunk) == recorded["parameters"]
    assert {published_name(key) for key in state if "correlation" not in key} == set(recorded["keys"])
    for module in net.modules():
        if isinstance(module, Correlation):  # open
            for weigher in (module.temporal, module.spatial):
                nn.init.zeros_(weigher[2].weight)
                nn.init.constant_(weigher[2].bias, 50.0)
    check_pooled(net, recorded, 1e-9)
    check_pooled(net.float(), recorded, 1e-4)


def test_correlation_is_the_papers() -> None:
    torch.manual_seed(0)
    block, clips = Correlation(32, 4), torch.randn(2, 32, 4, 5, 6)
    whole = clips.mean(dim=(2, 3, 4))
    temporal = torch.sigmoid(block.temporal[2](torch.relu(block.temporal[0](whole))))
    frames = torch.stack([clips[:, :, i].mean(dim=(2, 3)) for i in range(4)], dim=2).flatten(1)
    spatial = torch.sigmoid(block.spatial[2](torch.relu(block.spatial[0](frames))))
    scaled = [clips * weights[:, :, None, None, None] for weights in (temporal, spatial)]
    torch.testing.assert_close(block(clips), (scaled[0] + scaled[1]) / 2)
    # C to C/r to C, and T C to T C/r to C
    assert [tuple(p.shape) for p in block.parameters() if p.ndim == 2] == [(2, 32), (32, 2), (8, 128), (32, 8)]


def test_longer_clips_are_averaged_inside_of_the_branch() -> None:
    block, clips = Correlation(32, 4), torch.randn(2, 32, 4, 5, 6)
    slow = clips.repeat_interleave(2, dim=2)
    torch.testing.assert_close(block(slow), block(clips).repeat_interleave(2, dim=2))


@pytest.mark.parametrize("name", ["stc_r101", "stc_x101", "stc_toy"])
def test_stages_have_the_channels_and_strides_of_the_spec(name: str) -> None:
    spec = BACKBONES[name]
    with torch.device("meta"):
        levels = spec.build(5)(torch.empty(1, 3, 16, 64, 64))
    assert {number: tuple(level.shape[1:]) for number, level in levels.items()} == {
        number: (stage.channels, 16 // stage.time, 64 // stage.space, 64 // stage.space)
        for number, stage in spec.stages.items()
    }


@pytest.mark.parametrize("neck", ["tpn", "none"])
def test_a_training_step(neck: Any) -> None:
    model = build_model(ModelConfig(backbone="stc_toy", classes=3, neck=neck, alpha=(1, 2)))
    scores = model(torch.randn(2, 3, 16, 48, 48))
    sum(part.square().mean() for part in (scores.action, *scores.auxiliary)).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_clips_that_do_not_fit_are_refused() -> None:
    model = build_model(ModelConfig(backbone="stc_toy", classes=3, neck="none"))
    for frames in (8, 24):
        with pytest.raises(
            ConfigError, match=f"clips of {frames} frames: stc_toy needs at least 16, in multiples of 16"
        ):
            model(torch.zeros(1, 3, frames, 32, 32))
