"""A checkpoint without training, to be scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tpn_ray import checkpoint as checkpoints
from tpn_ray import recipes
from tpn_ray.checkpoint import Checkpoint
from tpn_ray.datasets.toy import TOY_CLASSES
from tpn_ray.model.recognizer import build_model
from tpn_ray.recipe import replace_fields, to_plain


def save_untrained(folder: Path, classes: tuple[str, ...] = TOY_CLASSES, changes: dict[str, Any] | None = None) -> str:
    """The recipe toy, with some fields changed, and with random weights that tell videos apart."""
    torch.manual_seed(0)
    recipe = replace_fields(recipes.toy(), changes or {})
    model = build_model(recipe.model)
    with torch.no_grad():
        model.head.linear.weight.mul_(100)
    saved = Checkpoint(
        step=1,
        weights=model.state_dict(),
        training={},
        recipe=to_plain(recipe),
        label_sets={"action": list(classes)},
        dataset_version="v",
    )
    checkpoints.save(folder, saved)
    return str(folder)
