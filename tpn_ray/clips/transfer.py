"""Moves arrays to tensors on a device, and works on them beside what it computes. Runs where the network runs."""

from __future__ import annotations

import functools
from collections.abc import Callable

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
    (there,) = beside(device, lambda: [host.to(device, non_blocking=True)])
    return there


def beside(device: str, make: Callable[[], list[Tensor]]) -> list[Tensor]:
    """Return what `make` makes. On a GPU, it is queued on a stream of its own: it does not wait for the computation
    already queued, and what is queued from now on waits for it."""
    if torch.device(device).type != "cuda":
        return make()
    own, computing = _stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(own):
        made = make()
    computing.wait_stream(own)
    for tensor in made:
        tensor.record_stream(computing)  # made on the other stream, its memory is free only after its last use here
    return made


@functools.cache
def _stream(device: str) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
