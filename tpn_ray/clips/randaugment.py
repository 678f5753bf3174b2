"""RandAugment (Cubuk et al., CVPR Workshops 2020) of uint8 clips, in whole numbers. Runs where the network runs.

A few operations, drawn for each clip, change all of its frames alike. All pixel arithmetic is that of integers, and
where pixels go is computed with numpy, so a GPU gives the same bits as a CPU.

The ranges are those of timm, whose operations are applied to pictures; sharpness is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from tpn_ray.clips.augment import AugmentConfig
from tpn_ray.clips.transfer import upload

Clip = UInt8[Tensor, "t h w 3"]
Operation = Callable[[Tensor, float], Tensor]
"""(clip, strength from -1 to 1) -> clip."""

UNIT = 1024
"""Factors of colors are whole multiples of 1 / UNIT."""
GRAY = 128
"""Value of pixels that come from outside the picture."""


def rand_augment(
    clips: UInt8[Tensor, "n t h w 3"], config: AugmentConfig, randoms: Sequence[np.random.Generator]
) -> UInt8[Tensor, "n t h w 3"]:
    """Apply `rand_operations` random operations of `rand_magnitude` to each clip, drawn from its generator."""
    if not config.rand_operations or not len(clips):
        return clips
    return torch.stack([_changed(clip, config, random) for clip, random in zip(clips, randoms, strict=True)])


def _changed(clip: Tensor, config: AugmentConfig, random: np.random.Generator) -> Tensor:
    chosen = random.integers(len(OPERATIONS), size=config.rand_operations).tolist()
    signs = (random.integers(2, size=config.rand_operations) * 2 - 1).tolist()
    changed = clip
    for operation, sign in zip(chosen, signs, strict=True):
        changed = list(OPERATIONS.values())[operation](changed, sign * config.rand_magnitude / 10)
    return changed


def _moved(clip: Tensor, matrix: tuple[float, float, float, float], down: float, right: float) -> Tensor:
    """Fetch each pixel from where `matrix`, about the middle, and then a shift in pixels lead: the nearest there."""
    t, h, w, _ = clip.shape
    y, x = np.mgrid[:h, :w] - np.array([(h - 1) / 2, (w - 1) / 2])[:, None, None]
    rows = np.floor(matrix[0] * y + matrix[1] * x + down + (h - 1) / 2 + 0.5).astype(np.int64)
    columns = np.floor(matrix[2] * y + matrix[3] * x + right + (w - 1) / 2 + 0.5).astype(np.int64)
    inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
    source = upload(np.where(inside, rows * w + columns, h * w).reshape(-1), str(clip.device))
    padded = torch.cat([clip.reshape(t, h * w, 3), clip.new_full((t, 1, 3), GRAY)], dim=1)
    return padded[:, source].view(t, h, w, 3)


def _looked_up(clip: Tensor, table: Tensor) -> Tensor:
    """Replace every value by that of the table (3, 256) of its channel, cut to 0..255."""
    return table.clamp(0, 255).to(torch.uint8).reshape(-1)[_addresses(clip)]


def _addresses(clip: Tensor) -> Tensor:
    return clip.long() + torch.arange(0, 768, 256, device=clip.device)


def _values(clip: Tensor) -> Tensor:
    return torch.arange(256, device=clip.device).expand(3, 256)


def _gray(clip: Tensor) -> Tensor:
    red, green, blue = clip.long().unbind(dim=-1)
    return (299 * red + 587 * green + 114 * blue + 500) // 1000


def _blend(values: Tensor, base: Tensor | int, strength: float) -> Tensor:
    """Move values away from a base, or towards it: by up to nine tenths."""
    return base + ((values - base) * round(UNIT * (1 + 0.9 * strength)) + UNIT // 2) // UNIT


def _rotated(clip: Tensor, strength: float) -> Tensor:
    cos, sin = math.cos(math.radians(30 * strength)), math.sin(math.radians(30 * strength))
    return _moved(clip, (cos, sin, -sin, cos), 0, 0)


def _autocontrast(clip: Tensor, strength: float) -> Tensor:
    low, high = clip.amin(dim=(0, 1, 2)).long()[:, None], clip.amax(dim=(0, 1, 2)).long()[:, None]
    table = (_values(clip) - low) * 255 // (high - low).clamp(min=1)
    return _looked_up(clip, torch.where(high > low, table, _values(clip)))


def _equalized(clip: Tensor, strength: float) -> Tensor:
    counts = torch.bincount(_addresses(clip).reshape(-1), minlength=768).view(3, 256)
    places = torch.arange(1, 257, device=clip.device) * (counts > 0)
    last = counts.gather(1, places.argmax(dim=1, keepdim=True))
    step = (counts.sum(dim=1, keepdim=True) - last) // 255
    table = (step // 2 + counts.cumsum(dim=1) - counts) // step.clamp(min=1)
    return _looked_up(clip, torch.where(step > 0, table, _values(clip)))


def _solarized(clip: Tensor, strength: float) -> Tensor:
    values = _values(clip)
    return _looked_up(clip, torch.where(values >= round(256 * (1 - abs(strength))), 255 - values, values))


def _posterized(clip: Tensor, strength: float) -> Tensor:
    dropped = round(4 * abs(strength))
    return _looked_up(clip, _values(clip) >> dropped << dropped)


def _contrast(clip: Tensor, strength: float) -> Tensor:
    gray = _gray(clip)
    return _looked_up(clip, _blend(_values(clip), gray.sum() // gray.numel(), strength))


def _saturated(clip: Tensor, strength: float) -> Tensor:
    return _blend(clip.long(), _gray(clip)[..., None], strength).clamp(0, 255).to(torch.uint8)


OPERATIONS: dict[str, Operation] = {
    "identity": lambda clip, strength: clip,
    "rotate": _rotated,
    "shear_x": lambda clip, strength: _moved(clip, (1, 0, 0.3 * strength, 1), 0, 0),
    "shear_y": lambda clip, strength: _moved(clip, (1, 0.3 * strength, 0, 1), 0, 0),
    "translate_x": lambda clip, strength: _moved(clip, (1, 0, 0, 1), 0, round(0.45 * strength * clip.shape[2])),
    "translate_y": lambda clip, strength: _moved(clip, (1, 0, 0, 1), round(0.45 * strength * clip.shape[1]), 0),
    "autocontrast": _autocontrast,
    "equalize": _equalized,
    "solarize": _solarized,
    "posterize": _posterized,
    "contrast": _contrast,
    "brightness": lambda clip, strength: _looked_up(clip, _blend(_values(clip), 0, strength)),
    "saturation": _saturated,
}
"""Name of an operation -> what it does."""
