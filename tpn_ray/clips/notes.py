"""Notes on what remains to be done to clips that a device will develop. Plain data; runs anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NOTHING, PLANES, RGB, FLOW = 0, 1, 2, 3
"""Kinds: no clip at all; planes y, u, v; RGB pixels of three bytes; flow of two bytes a pixel."""


class Note(NamedTuple):
    """The place of a clip in the block's pixels, its form there, and its random draws."""

    kind: int
    begin: int
    """First byte of the clip."""
    frames: int
    height: int
    width: int
    top: int
    """Top of the crop, which is in pixels of what is stored."""
    left: int
    crop_height: int
    crop_width: int
    mirrored: bool
    matrix: int
    """Color matrix; see `tpn_ray.videos.planes.Planes`."""
    full: bool
    jitter: tuple[tuple[float, ...], ...]
    grey_share: float


NO_CLIP = Note(NOTHING, 0, 0, 0, 0, 0, 0, 0, 0, False, 0, False, ((0.0,) * 3,) * 3, 0.0)
NUMBERS = 12
"""Number of fields before `jitter`."""


def to_array(notes: Sequence[Note]) -> NDArray[np.float64]:
    """Convert notes to an array (n, 22)."""
    rows = [[*note[:NUMBERS], *(share for row in note.jitter for share in row), note.grey_share] for note in notes]
    return np.array(rows, dtype=np.float64)


def from_array(array: NDArray[np.float64]) -> list[Note]:
    """Convert the rows of an array back to notes."""
    notes = []
    for row in array.tolist():
        jitter = tuple(tuple(row[at : at + 3]) for at in range(NUMBERS, NUMBERS + 9, 3))
        numbers = [bool(value) if at in (9, 11) else int(value) for at, value in enumerate(row[:NUMBERS])]
        notes.append(Note._make([*numbers, jitter, row[-1]]))
    return notes
