"""What each backbone costs, counted without running it, and what was published of it. Torch only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from tpn_ray.model.backbones import BACKBONES
from tpn_ray.model.recognizer import ModelConfig, build_model

CLASSES = 400


@dataclass(frozen=True)
class NetworkCost:
    """NetworkCost of one network for one clip."""

    parameters: int
    """Number of parameters in training, auxiliary heads included."""

    gmacs: float
    """Billions of multiply-adds of convolutions and linear layers for one view in a test."""

    activation_bytes: int
    """Bytes that a training step keeps of the clip for the backward pass, in float32."""


def cost(config: ModelConfig, frames: int, crop_px: int) -> NetworkCost:
    """Count the cost of a network for clips of `frames` frames of crop_px x crop_px pixels."""
    with torch.device("meta"):
        model, clips = build_model(config), torch.empty(2, 3, frames, crop_px, crop_px)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(clips[:1])
        kept = kept_bytes(model.train(), clips)
    return NetworkCost(
        sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() / 2e9, kept // 2
    )


def kept_bytes(model: torch.nn.Module, clips: Tensor) -> int:
    """Return the bytes of the tensors, other than parameters, that a forward pass keeps for its backward pass."""
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}  # holds the tensors, so that no storage's address is given twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage.nbytes(), tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        scores = model(clips)
    del scores
    return sum(size for size, _ in kept.values())


def table() -> Table:
    """Build the table of all backbones but the toys, with and without the pyramid on their last two levels."""
    made = Table(title=f"Backbones, with {CLASSES} classes; in brackets with the pyramid on the last two levels")
    for column in ("backbone", "clip", "parameters (M)", "GMACs a view", "kept in training (GB a clip)", "published"):
        made.add_column(column, justify="left" if column in ("backbone", "clip", "published") else "right")
    for name, spec in BACKBONES.items():
        if name.endswith("_toy"):
            continue
        shape = spec.published
        # A head that relates frames needs those that alpha would pool.
        alpha = (1, 1) if spec.sampling == "segments" and spec.least_frames > 1 else (8, 8)
        levels = tuple(stage for stage in spec.stages if spec.stages[stage].space <= LARGEST_STRIDE)[-2:]
        plain, pyramid = (
            cost(
                ModelConfig(backbone=name, classes=CLASSES, neck=neck, levels=levels, alpha=alpha),
                shape.frames,
                shape.crop_px,
            )
            for neck in ("none", "tpn")
        )
        made.add_row(
            name,
            f"{shape.frames}x{shape.stride_frames}, {shape.crop_px} px",
            f"{plain.parameters / 1e6:.1f} ({pyramid.parameters / 1e6:.1f})",
            f"{plain.gmacs:.1f} ({pyramid.gmacs:.1f})",
            f"{plain.activation_bytes / 1e9:.2f} ({pyramid.activation_bytes / 1e9:.2f})",
            str(shape),
        )
    return made


LARGEST_STRIDE = 32
"""Stride of the highest level that the pyramid takes; above it are only fully connected layers."""
