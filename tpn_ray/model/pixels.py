"""Stored pixels -> what a network eats. Runs where the network runs: pixels stay uint8 until they are on the device."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
"""Per channel, R G B, on the scale 0 to 255: what all published TPN weights were trained with."""


def normalise(
    clips: UInt8[Tensor, "n t h w c"],
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "n c t h w"]:
    """(pixel - mean) / std. The memory stays in the order n t h w c, in which the network works."""
    channels = clips.shape[-1]
    if len(mean) != channels or len(std) != channels:
        raise ValueError(f"clips have {channels} channels, mean has {len(mean)} and std {len(std)}")
    shift = torch.tensor(mean, device=clips.device)
    scale = torch.tensor(std, device=clips.device)
    return ((clips.float() - shift) / scale).to(dtype).permute(0, 4, 1, 2, 3)
