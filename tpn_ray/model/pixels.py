"""Stored pixels -> what a network eats. Runs where the network runs: pixels travel as uint8 and become float on the device."""

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
    """(pixel - mean) / std. The result is a view of n t h w c memory, the order in which the network works: nothing moves."""
    channels = clips.shape[-1]
    if len(mean) != channels or len(std) != channels:
        raise ValueError(f"clips have {channels} channels, mean has {len(mean)} and std {len(std)}")
    shift = torch.tensor(mean, device=clips.device)
    scale = torch.tensor(std, device=clips.device)
    return ((clips.float() - shift) / scale).to(dtype).permute(0, 4, 1, 2, 3)
