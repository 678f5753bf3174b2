"""Fresh weights are drawn as by the code that published each network."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from tpn_ray.model.recognizer import ModelConfig, Recognizer, build_model


def fresh(backbone: str, neck: Literal["tpn", "none"] = "none", **changes: Any) -> Recognizer:
    torch.manual_seed(0)
    return build_model(ModelConfig(backbone=backbone, classes=400, neck=neck, alpha=(1, 1), **changes))


def drawn(module: object, name: str = "weight") -> Tensor:
    """The weights (or the bias) of a layer."""
    found = getattr(module, name)
    assert isinstance(found, Tensor)
    return found.detach()


def convolutions(module: nn.Module) -> list[nn.Conv2d | nn.Conv3d]:
    return [one for one in module.modules() if isinstance(one, nn.Conv2d | nn.Conv3d)]


def fans(convolution: nn.Conv2d | nn.Conv3d) -> tuple[int, int]:
    """Inputs of an output, and outputs of an input, with all places of the kernel."""
    outputs, inputs = convolution.weight.shape[:2]
    places = convolution.weight[0, 0].numel()
    return inputs * places, outputs * places


@pytest.mark.parametrize(
    ("backbone", "start"),
    [
        *[(f"{name}_toy", 0.0) for name in ("slowonly", "slowfast", "x3d", "i3d", "nonlocal")],
        *[(f"{name}_toy", 1.0) for name in ("tsn", "tsm", "trn", "ircsn", "ipcsn", "stc")],
    ],
)
def test_residual_branches(backbone: str, start: float) -> None:
    norms = [module for name, module in fresh(backbone).backbone.named_modules() if name.endswith("conv3.norm")]
    assert norms and all(bool((drawn(norm) == start).all()) for norm in norms)


@pytest.mark.parametrize("backbone", ["slowonly_toy", "slowfast_toy", "r2plus1d_toy", "c3d_toy", "stc_toy"])
def test_kaiming_normal(backbone: str) -> None:
    scaled = [drawn(one) * (fans(one)[1] / 2) ** 0.5 for one in convolutions(fresh(backbone).backbone)]
    deviations = [float(weight.std()) for weight in scaled if weight.numel() > 2000]
    assert deviations and deviations == pytest.approx([1.0] * len(deviations), abs=0.1)


@pytest.mark.parametrize("backbone", ["s3d_toy", "s3dg_toy", "inception_i3d_toy"])
@pytest.mark.parametrize("channels", [3, 2])
def test_pytorchs_default(backbone: str, channels: int) -> None:
    scaled = [drawn(one).abs() * fans(one)[0] ** 0.5 for one in convolutions(fresh(backbone, in_channels=channels))]
    highest = [float(weight.max()) for weight in scaled if weight.numel() > 500]
    assert highest and highest == pytest.approx([1.0] * len(highest), abs=0.02)  # uniform


@pytest.mark.parametrize("backbone", ["eco_toy", "eco_full_toy"])
def test_xavier_uniform_without_bias(backbone: str) -> None:
    found = convolutions(fresh(backbone).backbone)
    highest = [float(drawn(one).abs().max()) * (sum(fans(one)) / 6) ** 0.5 for one in found if one.weight.numel() > 500]
    assert highest == pytest.approx([1.0] * len(highest), abs=0.02)
    assert all(not one.bias.any() for one in found if one.bias is not None)


def test_embeddings_of_non_local_blocks() -> None:
    model = fresh("nonlocal_toy")
    embeddings = [module for name, module in model.named_modules() if name.endswith((".query", ".key", ".value"))]
    assert len(embeddings) >= 3
    assert all(float(drawn(one).std()) == pytest.approx(0.01, rel=0.1) for one in embeddings)
    assert not any(drawn(one, "bias").any() for one in embeddings)


@pytest.mark.parametrize(
    ("backbone", "neck", "deviation"),
    [
        *[(name, neck, 0.01) for name in ("slowonly_toy", "slowfast_toy", "x3d_toy") for neck in ("none", "tpn")],
        *[("tsn_toy", "none", 0.01), ("tsm_toy", "none", 0.001), ("tsm_toy", "tpn", 0.01), ("eco_toy", "none", 0.001)],
    ],
)
def test_heads(backbone: str, neck: Any, deviation: float) -> None:
    linear = fresh(backbone, neck).head.linear
    assert float(drawn(linear).std()) == pytest.approx(deviation, rel=0.05)
    assert not drawn(linear, "bias").any()


@pytest.mark.parametrize("backbone", ["s3d_toy", "s3dg_toy", "inception_i3d_toy", "stc_toy"])
def test_heads_that_the_published_code_does_not_draw(backbone: str) -> None:
    linear = fresh(backbone).head.linear
    assert float(drawn(linear).abs().max()) == pytest.approx(drawn(linear).shape[1] ** -0.5, rel=0.02)
    assert drawn(linear, "bias").any()


def test_head_of_relations() -> None:
    head = fresh("trn_toy").head
    assert float(drawn(head.frame).std()) == pytest.approx(0.001, rel=0.1)
    widest = drawn(head.relations[0].mix)  # type: ignore[index,union-attr]
    assert float(widest.abs().max()) == pytest.approx(widest.shape[1] ** -0.5, rel=0.02)
