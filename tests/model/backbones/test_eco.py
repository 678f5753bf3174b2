from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.model.backbones.published import check_outputs, drawn, names_of, recording
from tpn_ray.errors import ConfigError
from tpn_ray.model.backbones import BACKBONES
from tpn_ray.model.recognizer import ModelConfig, build_model
from tpn_ray.model.weights import load_weights

TOYS = ["eco_toy", "eco_full_toy"]


@pytest.mark.parametrize("name", ["eco", "eco_full"])
def test_outputs_are_the_published_codes(name: str) -> None:
    check_outputs(name, recording(name))


@pytest.mark.parametrize("name", ["eco", "eco_full"])
def test_names_are_the_published_codes(name: str) -> None:
    keys, ours = recording(name)["keys"], names_of(name, "eco_pytorch")
    assert set(ours) == {*keys, "new_fc.weight", "new_fc.bias"}


def test_a_published_file_loads_with_its_classifier() -> None:
    model = build_model(ModelConfig(backbone="eco", neck="none"))
    keys = recording("eco")["keys"] | {"new_fc.weight": [400, 512], "new_fc.bias": [400]}
    report = load_weights(model, {f"module.{key}": drawn(key, tuple(shape)) for key, shape in keys.items()})
    assert (report.layout, report.unused, report.missing) == ("eco_pytorch", (), ())


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("px", [48, 50])
@pytest.mark.parametrize("neck", ["tpn", "none"])
def test_a_training_step(name: str, px: int, neck: Any) -> None:
    model = build_model(ModelConfig(backbone=name, classes=3, neck=neck, alpha=(1, 2)))
    scores = model(torch.randn(2, 3, 16, px, px))
    sum(part.square().mean() for part in (scores.action, *scores.auxiliary)).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", [*TOYS, "eco", "eco_full"])
def test_stages_have_the_channels_and_strides_of_the_spec(name: str) -> None:
    spec = BACKBONES[name]
    for top in (3, 4, 5):
        with torch.device("meta"):
            backbone = spec.build(top)
            levels = backbone(torch.empty(1, 3, 8, 64, 64))
        assert {number: tuple(level.shape[1:]) for number, level in levels.items()} == {
            number: (
                # The frames' features are beside the last stage only, and only if it is built.
                stage.channels if number == top or number < 5 else 0,
                8 // stage.time,
                64 // stage.space,
                64 // stage.space,
            )
            for number, stage in spec.stages.items()
            if number <= top
        }


def test_the_rest_of_the_frames_network_is_built_only_for_the_last_stage() -> None:
    with torch.device("meta"):
        low, high = (BACKBONES["eco_full"].build(top) for top in (4, 5))
    assert not any(key.startswith("beside") or "3c.three" in key for key in low.state_dict())
    assert any(key.startswith("beside") for key in high.state_dict())


def test_clips_that_do_not_fit_are_refused() -> None:
    model = build_model(ModelConfig(backbone="eco_full_toy", classes=3, alpha=(1, 2)))
    with pytest.raises(ConfigError, match="clips of 6 frames: .* in multiples of 4"):
        model(torch.zeros(1, 3, 6, 48, 48))
    with pytest.raises(ConfigError, match="needs at least 7 x 7"):
        model(torch.zeros(1, 3, 8, 6, 48))
    small = build_model(ModelConfig(backbone="eco_toy", classes=3, neck="none"))
    assert small(torch.randn(2, 3, 1, 7, 7)).action.shape == (2, 3)
