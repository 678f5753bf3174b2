"""Backbones against what published code computed in double precision, on weights that only their names decide."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from tests.model.backbones.comparison import drawn
from tests.model.vectors import REFERENCE
from tpn_ray.model.layouts import names_in
from tpn_ray.model.recognizer import ModelConfig, Recognizer, build_model
from tpn_ray.model.weights import load_weights


def recording(name: str) -> dict[str, Any]:
    """Names, shapes, and outputs of a published network."""
    recorded: dict[str, Any] = json.loads((REFERENCE / f"{name}.json").read_text())
    return recorded


def loaded(name: str, recorded: dict[str, Any]) -> Recognizer:
    """The network without a pyramid, with the published code's weights in double precision, in evaluation mode."""
    with torch.device("meta"):
        model = build_model(ModelConfig(backbone=name, neck="none"))
    model = model.to_empty(device="cpu").double().eval()
    state = {key: drawn(key, tuple(shape)) for key, shape in recorded["keys"].items()}
    load_weights(model, state, backbone_only=True)
    return model


def clips(recorded: dict[str, Any], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    values = np.random.RandomState(recorded["input"]["seed"]).standard_normal(recorded["input"]["shape"])
    return torch.from_numpy(values).to(dtype)


def check_outputs(name: str, recorded: dict[str, Any]) -> None:
    """Same parameters, same shapes, and the same numbers in double and single precision."""
    model = loaded(name, recorded)
    assert sum(p.numel() for p in model.backbone.parameters()) == recorded["parameters"]
    check_pooled(model.backbone, recorded, 1e-9)
    check_pooled(model.backbone.float(), recorded, 1e-4)


@torch.no_grad()
def check_pooled(backbone: torch.nn.Module, recorded: dict[str, Any], tolerance: float) -> None:
    outputs = backbone(clips(recorded, next(backbone.parameters()).dtype))
    assert set(map(str, outputs)) == set(recorded["stages"])
    for stage, expected in recorded["stages"].items():
        output = outputs[int(stage)]
        assert list(output.shape) == expected["shape"]
        pooled = torch.tensor(expected["pooled"], dtype=torch.float64)
        error = (output.double().mean(dim=(2, 3, 4)).flatten() - pooled).abs().max() / pooled.abs().max()
        assert error < tolerance, f"stage {stage}: {error:.1e}"


def names_of(name: str, layout: str) -> dict[str, tuple[int, ...]]:
    """The names of backbone and head in a layout, with our shapes."""
    config = ModelConfig(backbone=name, neck="none")
    with torch.device("meta"):
        state = build_model(config).state_dict()
    return {
        found: tuple(value.shape)
        for key, value in state.items()
        for found in names_in(layout, config.spec, key, top_auxiliary=0)
    }
