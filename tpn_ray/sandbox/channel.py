"""The protocol between a sandbox and its child. Runs on both sides.

Requests and replies are a few bytes on a socket; their contents are in two pieces of memory that both processes map.
Nothing that comes out of the child is ever unpickled or executed.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tpn_ray.videos import pixels

REQUEST = struct.Struct("<QQQQ?")
"""Bytes of the pickled call, bytes of the video after it, beginning and end of the free memory for pixels, and whether
an open file is sent instead of a video."""
REPLY = struct.Struct("<cQQ")
"""Kind of the reply, and where its JSON starts and ends in the child's memory."""
RESULT, ITEM, END, REFUSED = b"r", b"i", b"e", b"x"
"""Kinds of replies: a single value, one of several items, the end of the items, and the reason why a video is bad."""
SHARED_BYTES = 4 * 1024**3
"""Largest reply. This is address space, of which only what is written takes up memory."""
PIXEL_BYTES = 64 * 1024**2
"""The first part of the memory, where the child makes pixels and the parent reads them in place. What does not fit, and
all other results, are written behind it and copied."""

Lend = Callable[[NDArray[np.uint8], int], None]
"""Is told of an array that is used where it is, and of its offset."""


class Pixels:
    """The child's memory for the pixels that its functions make."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._origin = address(np.frombuffer(memory, dtype=np.uint8, count=1))
        self._free = self._limit = 0

    def begin(self, free: int, limit: int) -> None:
        """Make arrays between these offsets; those made before are no longer needed."""
        self._free, self._limit = free, limit

    def empty(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return an uninitialized array, in the memory if there is room in the part that is kept."""
        size = math.prod(shape)
        if self._free + size > self._limit:
            return pixels.plain(shape)
        array = np.frombuffer(self._memory, dtype=np.uint8, count=size, offset=self._free).reshape(shape)
        self._free += aligned(size)
        return array

    def offset(self, array: NDArray[Any]) -> int | None:
        """Return where an array is among the pixels; None if it is elsewhere, or not in one piece."""
        offset = address(array) - self._origin
        return offset if 0 <= offset < PIXEL_BYTES and array.flags.c_contiguous else None


def address(array: NDArray[Any]) -> int:
    """Return where an array begins in this process's memory."""
    where: int = array.__array_interface__["data"][0]
    return where


def aligned(size: int) -> int:
    """Round a number of bytes up, so that what follows is aligned for any number."""
    return size + -size % 16


def pack(value: Any, memory: mmap.mmap, made: Pixels, at: int = PIXEL_BYTES) -> tuple[Any, int]:
    """Write the arrays and bytes of a value to the memory from `at`, except those that were made there.

    Returns what stands for the value in JSON, and the offset where the data ends. Raises MemoryError if the memory is
    full.
    """
    if isinstance(value, np.ndarray | bytes):
        array = np.frombuffer(value, dtype=np.uint8) if isinstance(value, bytes) else value
        if (there := made.offset(array)) is not None:
            return {"array": [array.dtype.str, array.shape, there]}, at
        if at + array.nbytes > len(memory):
            raise MemoryError
        target = np.frombuffer(memory, dtype=array.dtype, count=array.size, offset=at).reshape(array.shape)
        np.copyto(target, array)
        kind = "bytes" if isinstance(value, bytes) else "array"
        return {kind: [array.dtype.str, array.shape, at]}, at + aligned(array.nbytes)
    if isinstance(value, dict):
        packed, at = pack(list(value.values()), memory, made, at)
        return {"dict": [list(value), packed]}, at
    if isinstance(value, list | tuple):
        if not any(isinstance(one, np.ndarray | bytes | dict | list | tuple) for one in value):
            return list(value), at
        parts = []
        for one in value:
            packed, at = pack(one, memory, made, at)
            parts.append(packed)
        return parts, at
    return value, at


def unpack(packed: Any, memory: memoryview, lend: Lend) -> Any:
    """Rebuild a packed value, which may be hostile: numpy checks neither the sign nor the bounds of an offset.

    Pixels are not copied, and `lend` is told of them. The child could still change them, but any bytes are valid
    pixels.
    """
    if isinstance(packed, list):
        if not any(isinstance(one, dict | list) for one in packed):
            return packed
        return [unpack(one, memory, lend) for one in packed]
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "dict":
        return dict(zip(content[0], unpack(content[1], memory, lend), strict=True))
    name, shape, begin = content
    dtype = np.dtype(name)
    if dtype.kind not in "biuf" or not all(type(number) is int and number >= 0 for number in (*shape, begin)):
        raise ValueError(f"no array of {name!r} and {shape!r} at {begin!r}")
    part = memory[begin : begin + math.prod(shape) * dtype.itemsize]
    if kind == "bytes":
        return bytes(part)
    array = np.frombuffer(part, dtype)
    if len(part) and dtype == np.uint8 and begin + len(part) <= PIXEL_BYTES:
        lend(array, begin)
        return array.reshape(shape)
    return array.reshape(shape).copy()
