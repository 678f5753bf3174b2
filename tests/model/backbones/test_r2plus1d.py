from __future__ import annotations

import pytest
import torch

from tests.model.backbones.comparison import check, published_shapes
from tpn_ray.errors import ConfigError
from tpn_ray.model.backbones.r2plus1d import channels_inside
from tpn_ray.model.layouts import names_in
from tpn_ray.model.recognizer import ModelConfig, build_model
from tpn_ray.model.weights import load_weights, mmaction2_state


@pytest.mark.parametrize(("name", "layout"), [("r2plus1d_r34", "mmaction2"), ("r2plus1d_18", "torchvision")])
def test_features_are_the_published(name: str, layout: str) -> None:
    check(name, name, layout)


def test_pairs_have_the_weights_of_the_convolution_they_replace() -> None:
    for inputs, outputs in ((64, 64), (64, 128), (128, 256)):
        inside = channels_inside(inputs, outputs, 3)
        assert inside * (9 * inputs + 3 * outputs) == pytest.approx(27 * inputs * outputs, rel=0.01)


def test_norms_inside_pairs_have_another_epsilon_than_those_after() -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig(backbone="r2plus1d_r34", neck="none"))
    norms = {k: m.eps for k, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert {eps for key, eps in norms.items() if ".space." in key} == {1e-5}
    assert {eps for key, eps in norms.items() if ".time." in key} == {1e-3}


def test_torchvisions_file_loads_with_its_head_and_mmaction2_has_no_such_network() -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig(backbone="r2plus1d_18", neck="none"))
    shapes = published_shapes(model, "torchvision")
    assert sum(torch.Size(shape).numel() for key, shape in shapes.items() if "running" not in key) > 31_300_125
    assert names_in("torchvision", model.config.spec, "head.linear.weight", top_auxiliary=0) == ("fc.weight",)
    file = {key: torch.zeros(shape, device="meta") for key, shape in shapes.items()}
    file |= {"fc.weight": torch.zeros(400, 512, device="meta"), "fc.bias": torch.zeros(400, device="meta")}
    report = load_weights(model, file)
    assert (report.layout, report.unused, report.missing) == ("torchvision", (), ())
    with pytest.raises(ConfigError, match="mmaction2 has no r2plus1d_18"):
        mmaction2_state(model)
