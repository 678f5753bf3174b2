"""Where decoded pixels are put. Runs anywhere.

By default that is numpy's own memory. The process that decodes videos of unknown origin puts them directly where its
parent reads them, which saves copying every clip.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Allocate = Callable[[tuple[int, ...]], NDArray[np.uint8]]


def plain(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return an uninitialized array in numpy's own memory."""
    return np.empty(shape, dtype=np.uint8)


_allocate: Allocate = plain


def empty(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return an uninitialized array for pixels that will be a result."""
    return _allocate(shape)


def allocate_with(allocate: Allocate) -> None:
    """Have `empty` call the given function in this process."""
    global _allocate
    _allocate = allocate
