"""How a block carries what views show (`views.ViewFrames`) of videos of different sizes. Runs anywhere, without Ray."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tpn_ray.clips import rows
from tpn_ray.clips.sampling import ClipConfig
from tpn_ray.clips.views import ViewFrames, Views


def columns(made: Sequence[ViewFrames | None], views: Views, clip: ClipConfig) -> dict[str, NDArray[Any]]:
    """Build PIXELS and the columns to find them again, one row per video; None marks a video that could not be used."""
    parts = [np.zeros(0, np.uint8) if seen is None else seen.frames.reshape(-1) for seen in made]
    ends = np.cumsum([part.size for part in parts])
    row_bytes = max(1, -(-int(ends[-1]) // len(made)))
    filling = np.zeros(len(made) * row_bytes - int(ends[-1]), np.uint8)
    whole = [part for part in (*parts, filling) if part.size]
    pixels = whole[0] if len(whole) == 1 else np.concatenate(whole)  # nothing is copied for a single video
    nowhere = np.zeros((views.clips, views.clip(clip).pictures), np.int64)
    shapes = [(0, 0, 0, 0) if seen is None else seen.frames.shape for seen in made]
    return {
        rows.PIXELS: pixels.reshape(len(made), row_bytes),
        rows.WHERE: np.array(
            [
                (end - part.size - row * row_bytes, *shape)
                for row, (end, part, shape) in enumerate(zip(ends, parts, shapes, strict=True))
            ]
        ),
        rows.PLACES: np.stack([nowhere if seen is None else seen.places for seen in made]),
        rows.SEED: np.array([0 if seen is None else seen.seed for seen in made], dtype=np.int64),
    }


def of_row(block: dict[str, NDArray[Any]], row: int) -> ViewFrames:
    """Return what the views of one video show; its frames are the block's memory, which may be read-only.

    Ray Data may have merged several blocks: those of windows, which are passed on one by one.
    """
    begin, *shape = block[rows.WHERE][row].tolist()
    pixels = block[rows.PIXELS]
    if pixels.dtype == object:  # rows of different lengths, one window each
        flat = pixels[row]
    else:
        flat, begin = pixels.reshape(-1), begin + row * pixels.shape[1]
    seen = flat[begin : begin + math.prod(shape)].reshape(shape)
    return ViewFrames(seen, block[rows.PLACES][row], int(block[rows.SEED][row]))
