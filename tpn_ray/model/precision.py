"""The precision in which a network computes: TF32 and bf16 switched on and off. Runs anywhere, torch only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

Precision = Literal["fp32", "tf32", "bf16"]


def use_tf32(allowed: bool) -> None:
    """Let float32 convolutions and products on a GPU round their inputs to TF32, or not.

    Convolutions would by default, and products would not.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


def autocast(precision: str, device: str | torch.device) -> torch.autocast:
    """Return the autocast context of a precision."""
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=precision == "bf16")


@contextlib.contextmanager
def computing(precision: str, device: str | torch.device) -> Iterator[None]:
    """Compute in a precision inside the block, and leave the process's switches as they were."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    use_tf32(precision == "tf32")
    try:
        with autocast(precision, device):
            yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
