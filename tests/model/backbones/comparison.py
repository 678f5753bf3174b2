"""Backbones against what published code computed in double precision, with weights made from their names.

A reference holds the input (its seed and shape), the number of parameters, the published names and shapes of all
entries, and each output's mean over time and space.
"""

from __future__ import annotations

import functools
import json
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from tests.model.vectors import REFERENCE, noise
from tpn_ray.model.layouts import HEADS, names_in
from tpn_ray.model.recognizer import ModelConfig, Recognizer, build_model
from tpn_ray.model.weights import load_weights, mmaction2_state

Outputs = Callable[[torch.nn.Module, torch.Tensor], Sequence[torch.Tensor]]


def drawn(name: str, shape: Sequence[int]) -> torch.Tensor:
    """The weight of an entry, from its name in the published code and its shape."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.long)
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("running_mean"):
        value = 0.1 * random.randn(*shape)
    elif name.endswith("running_var"):
        value = random.uniform(0.5, 1.5, shape)
    elif len(shape) >= 2:
        value = random.randn(*shape) * math.sqrt((2 if len(shape) > 2 else 1) / math.prod(shape[1:]))
    elif name.endswith(".weight"):
        value = random.uniform(0.5, 1.5, shape) * (0.3 if ".conv3.bn." in name else 1)
    else:
        value = 0.1 * random.randn(*shape)
    return torch.from_numpy(np.asarray(value, dtype=np.float64))


def rounded(name: str, shape: Sequence[int]) -> torch.Tensor:
    """The same in single precision, which is what mmaction2's networks were given."""
    value = drawn(name, shape)
    return value.float() if value.is_floating_point() else value


@functools.cache
def recorded(case: str) -> dict[str, Any]:
    return json.loads((REFERENCE / f"{case}.json").read_text())  # type: ignore[no-any-return]


def top_stage(backbone: torch.nn.Module, clips: torch.Tensor) -> list[torch.Tensor]:
    return [list(backbone(clips).values())[-1]]


def check(name: str, case: str, layout: str = "mmaction2", outputs: Outputs = top_stage) -> None:
    """Check the number of parameters, names and shapes, and features in double and in single precision."""
    expected = recorded(case)
    with torch.device("meta"):
        model = build_model(ModelConfig(backbone=name, neck="none"))
    model = model.to_empty(device="cpu")
    assert sum(p.numel() for p in model.backbone.parameters()) == expected["parameters"]
    assert published_shapes(model, layout) == expected["keys"]
    prefix = "backbone." if layout in HEADS else ""
    weights = {prefix + key: rounded(key, shape) for key, shape in expected["keys"].items()}
    load_weights(model.double(), weights, backbone_only=True)
    clips = noise(expected["input"])
    assert distance(outputs(model.eval().backbone, clips.double()), expected["pooled"]) < 1e-9
    assert distance(outputs(model.float().backbone, clips), expected["pooled"]) < 1e-4


def published_shapes(model: Recognizer, layout: str) -> dict[str, list[int]]:
    """Published names of all entries of the backbone, and their shapes there."""
    if layout == "mmaction2":
        state = mmaction2_state(model)
        return {k.removeprefix("backbone."): list(v.shape) for k, v in state.items() if k.startswith("backbone.")}
    ours = {k: v for k, v in model.state_dict().items() if k.startswith("backbone.")}
    names = {k: names_in(layout, model.config.spec, k, top_auxiliary=0)[0] for k in ours}
    return {names[k]: deep_shape(v) for k, v in ours.items()}


def deep_shape(value: torch.Tensor) -> list[int]:
    shape = list(value.shape)
    if len(shape) != 4:
        return shape
    return [*shape[:2], 1, *shape[2:]] if shape[2] == shape[3] else [*shape, 1]


@torch.no_grad()
def distance(outputs: Sequence[torch.Tensor], pooled: list[Any]) -> float:
    """Largest difference of the means, relative to the largest mean."""
    assert len(outputs) == len(pooled)
    differences = []
    for output, means in zip(outputs, pooled, strict=True):
        expected = torch.tensor(means, dtype=torch.float64)
        found = output.double().mean(dim=(2, 3, 4))
        assert found.shape == expected.shape
        differences.append(((found - expected).abs().max() / expected.abs().max()).item())
    return max(differences)
