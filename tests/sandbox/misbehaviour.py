"""Functions that are called in a sandbox, and what they do there. Imports little: a child has to as well."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import numpy as np

from tpn_ray.errors import BadVideo
from tpn_ray.videos import pixels


def sleeps(_: bytes) -> None:
    time.sleep(100)


def computes(_: bytes) -> None:
    while True:
        pass


def crashes(_: bytes) -> None:
    os.abort()


def ends(_: bytes) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stops(_: bytes) -> str:
    """Stand still for a while, as a paused machine does."""
    os.kill(os.getpid(), signal.SIGSTOP)
    return "well"


def fails(_: bytes) -> None:
    list[int]()[0]


def hoards(_: bytes) -> int:
    return len(bytearray(2**40))


def answers(_: bytes) -> list[object]:
    return [None, True, 1, 0.1, "text", b"bytes", [], {"a": np.arange(6).reshape(2, 3), "b": [b"", np.zeros((0, 3))]}]


def paints(_: bytes, shape: tuple[int, ...], color: int) -> list[object]:
    """Make two arrays of pixels, one where the caller reads it, and return its middle rows as well."""
    made = pixels.empty(shape)
    made[:] = color
    return [made, np.full(shape, color + 1, np.uint8), made[1:-1]]


def paints_each(_: bytes, shape: tuple[int, ...]) -> Iterator[object]:
    """Keep what was made before."""
    first = pixels.empty(shape)
    first[:] = 1
    yield first
    second = pixels.empty(shape)
    second[:] = 2
    yield [first, second]


def counts(_: bytes, most: int) -> Iterator[int]:
    for number in range(most):
        if number == 3:
            raise BadVideo("damaged", "three")
        yield number
