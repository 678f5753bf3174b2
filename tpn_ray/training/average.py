"""Exponential moving average of a network's weights. Torch only; runs where the network runs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Average:
    """A copy of a network whose parameters follow it slowly.

    torch's AveragedModel keeps its counter on the CPU and sends it to the GPU at every step, which waits for it.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.module = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """Move every parameter towards the model's; the first time, take them over."""
        mine, its = list[Tensor](self.module.parameters()), list[Tensor](model.parameters())
        if self.steps == 0:
            torch._foreach_copy_(mine, its)
        else:
            torch._foreach_lerp_(mine, its, 1 - self.decay)
        self.steps += 1

    @torch.no_grad()
    def take_buffers(self, model: nn.Module) -> None:
        """Take over BatchNorm's statistics, which are not averaged."""
        for mine, its in zip(self.module.buffers(), model.buffers(), strict=True):
            mine.copy_(its)
