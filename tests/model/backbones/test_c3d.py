from __future__ import annotations

import pytest
import torch

from tests.model.backbones.comparison import check
from tpn_ray.errors import ConfigError
from tpn_ray.model.backbones import BACKBONES
from tpn_ray.model.backbones.c3d import fifth_pool
from tpn_ray.model.recognizer import ModelConfig, build_model
from tpn_ray.model.weights import load_weights, mmaction2_state


def test_features_are_the_published() -> None:
    check("c3d", "c3d")


@pytest.mark.parametrize("shape", [(15, 48, 48), (16, 48, 64), (16, 112, 112)])
def test_the_plain_network_takes_clips_of_one_shape(shape: tuple[int, int, int]) -> None:
    model = build_model(ModelConfig(backbone="c3d_toy", classes=3, neck="none"))
    with pytest.raises(ConfigError, match=r"the fully connected layers of C3D need 16 frames of 48 x 48 pixels"):
        model(torch.zeros(1, 3, *shape))


@pytest.mark.parametrize(("frames", "px"), [(16, 112), (8, 32), (5, 50)])
def test_a_pyramid_takes_clips_of_any_shape(frames: int, px: int) -> None:
    model = build_model(ModelConfig(backbone="c3d_toy", classes=3, levels=(2, 3, 4, 5), alpha=(1, 1, 1, 1))).eval()
    assert model(torch.zeros(1, 3, frames, px, px)).action.shape == (1, 3)


def test_the_fifth_pool_is_the_published_one_at_odd_sizes() -> None:
    frames = torch.randn(2, 3, 7, 7)
    published = torch.nn.functional.max_pool3d(frames[:, :, None], (1, 2, 2), (1, 2, 2), (0, 1, 1))[:, :, 0]
    assert torch.equal(fifth_pool(frames), published)
    assert fifth_pool(torch.randn(1, 1, 6, 5)).shape == (1, 1, 3, 3)


def test_biases_start_at_zero_and_full_layers_small() -> None:
    backbone = BACKBONES["c3d_toy"].build(6)
    backbone.initialise()
    for key, value in backbone.named_parameters():
        assert key.endswith(".weight") or not value.any(), key
        assert not key.startswith("full") or value.abs().max() < 0.05


def test_a_pyramid_loads_the_published_backbone_without_its_full_layers() -> None:
    plain = build_model(ModelConfig(backbone="c3d_toy", classes=3, neck="none"))
    pyramid = build_model(ModelConfig(backbone="c3d_toy", classes=3, alpha=(1, 2)))
    file = {key.removeprefix("backbone."): value for key, value in mmaction2_state(plain).items() if "head" not in key}
    report = load_weights(pyramid, file, backbone_only=True)
    assert report.layout == "mmaction2_backbone"
    assert report.unused == ("fc6.weight", "fc6.bias", "fc7.weight", "fc7.bias")
    assert load_weights(pyramid, mmaction2_state(plain), backbone_only=True).layout == "mmaction2"
