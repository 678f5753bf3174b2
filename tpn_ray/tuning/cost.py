"""Arithmetic cost of a network, counted without running it. Torch only."""

from __future__ import annotations

import functools

import torch
from torch.utils.flop_counter import FlopCounterMode

from tpn_ray.model.recognizer import ModelConfig, build_model
from tpn_ray.recipe import Recipe


def gmacs(recipe: Recipe) -> float:
    """Return the billions of multiply-adds that convolutions and linear layers take for one view of a video."""
    return _gmacs(recipe.model, recipe.clip.frames, recipe.augment.crop_px)


@functools.lru_cache(maxsize=1024)
def _gmacs(model: ModelConfig, frames: int, side_px: int) -> float:
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        build_model(model).eval()(torch.empty(1, model.in_channels, frames, side_px, side_px))
    return float(counter.get_total_flops()) / 2e9
