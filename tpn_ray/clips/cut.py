"""Cuts views out of decoded frames on the device. Runs where the network runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from tpn_ray.clips.augment import AugmentConfig
from tpn_ray.clips.views import Square, ViewFrames, Views, squares
from tpn_ray.model.pixels import mirrored


def cut(
    frames: UInt8[Tensor, "f h w c"], places: Int[Tensor, "clips t"], squares: Sequence[Square], side_px: int
) -> UInt8[Tensor, "v t s s c"]:
    """Cut the views of `squares`; `places` says which frames make up each clip."""
    views = frames.new_empty(len(squares), places.shape[1], side_px, side_px, frames.shape[3])
    for view, square in zip(views, squares, strict=True):
        across = slice(square.left, square.left + side_px)
        clip = frames[:, square.top : square.top + side_px, across][places[square.clip]]
        view.copy_(mirrored(clip.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if square.mirrored else clip)
    return views


def all_views(seen: ViewFrames, views: Views, config: AugmentConfig) -> NDArray[np.uint8]:
    """Cut every view on the CPU, as uint8 (v, t, h, w, c)."""
    frames, places = torch.tensor(seen.frames), torch.tensor(seen.places)
    made: NDArray[np.uint8] = cut(frames, places, squares(seen, views, config), views.side_px(config)).numpy()
    return made
