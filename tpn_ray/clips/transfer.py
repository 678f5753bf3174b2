"""Arrays of a block -> tensors on a device. Runs where the network runs."""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def upload(array: NDArray[np.generic], device: str) -> Tensor:
    """The array as a tensor of its own on the device; the array, which may be read only, is not changed.

    To a GPU it goes through page-locked memory on a stream of its own, beside what the GPU computes: neither this
    thread nor the computation of what came before waits for the copy.
    """
    if torch.device(device).type != "cuda":
        return torch.tensor(array, device=device)
    host = torch.empty(array.shape, dtype=torch.from_numpy(array[:0].copy()).dtype, pin_memory=True)
    np.copyto(host.numpy(), array)
    beside, computing = _copying_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(beside):
        there = host.to(device, non_blocking=True)
    computing.wait_stream(beside)
    there.record_stream(computing)  # its memory, taken on the other stream, is free again only behind its last use here
    return there


@functools.cache
def _copying_stream(device: str) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
