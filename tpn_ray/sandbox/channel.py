"""The protocol between a sandbox and its child. Runs on both sides.

Requests and replies are a few bytes on a socket; their contents are in two pieces of memory that both processes map.
Nothing that comes out of the child is ever unpickled or executed.
"""

from __future__ import annotations

import math
import mmap
import struct
from typing import Any

import numpy as np

REQUEST = struct.Struct("<QQ?")
"""Bytes of the pickled call, bytes of the video after it, and whether an open file is sent instead of a video."""
REPLY = struct.Struct("<cQQ")
"""Kind of the reply, and where its JSON starts and ends in the child's memory."""
RESULT, ITEM, END, REFUSED = b"r", b"i", b"e", b"x"
"""Kinds of replies: a single value, one of several items, the end of the items, and the reason why a video is bad."""
SHARED_BYTES = 4 * 1024**3
"""Largest reply. This is address space, of which only what is written takes up memory."""


def pack(value: Any, memory: mmap.mmap, at: int = 0) -> tuple[Any, int]:
    """Write the arrays and bytes of a value to the memory from `at`.

    Returns what stands for the value in JSON, and the offset where the data ends. Raises MemoryError if the memory is
    full.
    """
    if isinstance(value, np.ndarray | bytes):
        array = np.frombuffer(value, dtype=np.uint8) if isinstance(value, bytes) else value
        if at + array.nbytes > len(memory):
            raise MemoryError
        target = np.frombuffer(memory, dtype=array.dtype, count=array.size, offset=at).reshape(array.shape)
        np.copyto(target, array)
        kind = "bytes" if isinstance(value, bytes) else "array"
        return {kind: [array.dtype.str, array.shape, at]}, at + array.nbytes + -array.nbytes % 16
    if isinstance(value, dict):
        packed, at = pack(list(value.values()), memory, at)
        return {"dict": [list(value), packed]}, at
    if isinstance(value, list | tuple):
        if not any(isinstance(one, np.ndarray | bytes | dict | list | tuple) for one in value):
            return list(value), at
        made = []
        for one in value:
            packed, at = pack(one, memory, at)
            made.append(packed)
        return made, at
    return value, at


def unpack(packed: Any, memory: memoryview) -> Any:
    """Rebuild a packed value, which may be hostile: numpy checks neither the sign nor the bounds of an offset."""
    if isinstance(packed, list):
        return [unpack(one, memory) for one in packed] if any(isinstance(o, dict | list) for o in packed) else packed
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "dict":
        return dict(zip(content[0], unpack(content[1], memory), strict=True))
    name, shape, begin = content
    dtype = np.dtype(name)
    if dtype.kind not in "biuf" or not all(type(number) is int and number >= 0 for number in (*shape, begin)):
        raise ValueError(f"no array of {name!r} and {shape!r} at {begin!r}")
    part = memory[begin : begin + math.prod(shape) * dtype.itemsize]
    return bytes(part) if kind == "bytes" else np.frombuffer(part, dtype).reshape(shape).copy()
