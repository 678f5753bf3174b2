"""Weights made from a formula, and what published networks computed with them. Needs torch and numpy alone."""

from __future__ import annotations

import functools
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

REFERENCE = Path(__file__).parent / "reference"


def weights_by_name(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Weights that depend on nothing but an entry's name (mmaction2's names) and shape."""
    return {name: weight_by_name(name, shape) for name, shape in shapes.items()}


def weight_by_name(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.long)
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("running_mean"):
        value = 0.1 * random.randn(*shape)
    elif name.endswith("running_var"):
        value = random.uniform(0.5, 1.5, shape)
    elif len(shape) >= 4:
        value = random.randn(*shape) * math.sqrt(2 / math.prod(shape[1:]))
    elif len(shape) == 2:
        value = 0.002 * random.randn(*shape)
    elif name.endswith(".bias"):
        value = (0.05 if "fc" in name.split(".")[-2] else 0.1) * random.randn(*shape)
    else:
        value = random.uniform(0.5, 1.5, shape) * (0.3 if ".conv3.bn." in name else 1)
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


@functools.lru_cache(maxsize=1)  # making the weights takes longer than the tests of one network
def reference(case: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights of a published network, and what mmaction2's code computed with them in double precision."""
    recorded = json.loads((REFERENCE / f"{case}.json").read_text())
    return weights_by_name(recorded["weights"]), recorded


def noise(recorded: dict[str, Any]) -> torch.Tensor:
    """Normal noise of a recorded seed and shape, rounded to float32."""
    values = np.random.RandomState(recorded["seed"]).standard_normal(recorded["shape"])
    return torch.from_numpy(values.astype(np.float32))
