"""Moves arrays of a block to tensors on a device. Runs where the network runs."""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def upload(array: NDArray[np.generic], device: str) -> Tensor:
    """Copy the array to a new tensor on the device; the array, which may be read-only, is not changed.

    For a GPU, the copy goes through page-locked memory and runs on its own stream alongside the GPU's computation:
    neither this thread nor the computation already queued waits for it.
    """
    if torch.device(device).type != "cuda":
        return torch.tensor(array, device=device)
    host = torch.empty(array.shape, dtype=torch.from_numpy(array[:0].copy()).dtype, pin_memory=True)
    np.copyto(host.numpy(), array)
    beside, computing = _copying_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(beside):
        there = host.to(device, non_blocking=True)
    computing.wait_stream(beside)
    there.record_stream(computing)  # allocated on the other stream, its memory is free only after its last use here
    return there


@functools.cache
def _copying_stream(device: str) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
