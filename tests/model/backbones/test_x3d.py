from __future__ import annotations

import pytest
import torch

from tests.model.backbones.comparison import check
from tpn_ray.errors import CheckpointError
from tpn_ray.model.backbones import BACKBONES
from tpn_ray.model.backbones.x3d import SqueezeExcite, squeezed
from tpn_ray.model.recognizer import ModelConfig, build_model
from tpn_ray.model.weights import load_weights, mmaction2_state


def test_features_are_the_published() -> None:
    check("x3d_m", "x3d_m")


@pytest.mark.parametrize(("name", "parameters"), [("x3d_s", 2_089_986), ("x3d_l", 4_449_096)])
def test_parameters_are_the_published_number(name: str, parameters: int) -> None:
    with torch.device("meta"):
        backbone = BACKBONES[name].build(5)
    assert sum(p.numel() for p in backbone.parameters()) == parameters


def test_width_of_the_squeeze() -> None:
    assert [squeezed(channels) for channels in (54, 108, 216, 432)] == [8, 8, 16, 32]


def test_channels_are_scaled_by_their_means() -> None:
    layer, clips = SqueezeExcite(16), torch.randn(2, 16, 3, 4, 4)
    scale = layer(clips) / clips
    assert ((scale > 0) & (scale < 1)).all()
    torch.testing.assert_close(scale, scale[:, :, :1, :1, :1].expand_as(scale))
    shuffled = clips.flatten(2)[:, :, torch.randperm(48)].view_as(clips)
    torch.testing.assert_close(layer(shuffled) / shuffled, scale)


def test_the_plain_network_has_the_published_head() -> None:
    model = build_model(ModelConfig(backbone="x3d_toy", classes=3, neck="none", dropout=0.0)).eval()
    state = mmaction2_state(model)
    assert [key for key in state if not key.startswith("backbone.")] == [
        "cls_head.fc1.weight",
        "cls_head.fc2.weight",
        "cls_head.fc2.bias",
    ]
    features, head = torch.randn(2, 144, 4, 2, 2), model.head
    hidden = (features.mean(dim=(2, 3, 4)) @ state["cls_head.fc1.weight"].T).relu()
    expected = hidden @ state["cls_head.fc2.weight"].T + state["cls_head.fc2.bias"]
    torch.testing.assert_close(head(features), expected)


def test_a_pyramid_has_the_network_s_own_head() -> None:
    assert build_model(ModelConfig(backbone="x3d_toy", classes=3, alpha=(1, 2))).head.hidden is not None


def test_another_number_of_classes_is_said_to_be_the_reason() -> None:
    three, four = (build_model(ModelConfig(backbone="x3d_toy", classes=k, neck="none")) for k in (3, 4))
    with pytest.raises(CheckpointError, match="trained for another number of classes"):
        load_weights(four, mmaction2_state(three))
