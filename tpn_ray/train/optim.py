"""OptimConfig: SGD, its parameter groups, and the learning rate as a pure function of the step. Torch only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from tpn_ray.errors import ConfigError

Schedule = Literal["step", "cosine", "one_cycle", "constant"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How the weights are updated. Defaults: the published Kinetics-400 recipe."""

    lr: float = 0.01
    """Highest learning rate; 0.01 is meant for batches of 64 clips."""

    momentum: float = 0.9
    """Momentum of SGD."""

    nesterov: bool = True
    """Nesterov's momentum; in the published code, not in the paper."""

    weight_decay: float = 1e-4
    """L2 penalty, on all parameters as published."""

    decay_norm_and_bias: bool = True
    """Whether weight decay also holds for BatchNorm and biases (as published)."""

    clip_norm: float = 40.0
    """Largest global norm of the gradient; 0 does not clip."""

    schedule: Schedule = "step"
    """step: times `gamma` at each milestone. cosine: to zero. one_cycle: up, then down. constant."""

    milestones: tuple[float, ...] = (0.5, 0.8333)
    """For `step`: when, as shares of the run (the published code: epochs 75 and 125 of 150; the paper: 100 and 125)."""

    gamma: float = 0.1
    """For `step`: factor at each milestone."""

    warmup: float = 0.0
    """Share of the run in which the rate rises linearly from a tenth; for one_cycle, the rising part."""

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ConfigError(f"lr={self.lr} must be above 0")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum={self.momentum} must be at least 0 and below 1")
        if self.nesterov and not self.momentum:
            raise ConfigError("nesterov=True needs a momentum above 0")
        if self.weight_decay < 0 or self.clip_norm < 0:
            raise ConfigError(f"weight_decay={self.weight_decay} and clip_norm={self.clip_norm} must not be negative")
        if self.schedule not in ("step", "cosine", "one_cycle", "constant"):
            raise ConfigError(f"schedule={self.schedule!r} must be step, cosine, one_cycle or constant")
        if any(not 0 < share < 1 for share in self.milestones) or list(self.milestones) != sorted(self.milestones):
            raise ConfigError(f"milestones={self.milestones} must be rising shares of the run between 0 and 1")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup={self.warmup} is a share of the run: at least 0 and below 1")


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The rate of `step` (from 0) out of `steps`; pure, so that nothing about it needs saving."""
    done = step / steps
    rising = 0.3 if config.schedule == "one_cycle" and not config.warmup else config.warmup
    if done < rising:
        return config.lr * (0.1 + 0.9 * done / rising)
    if config.schedule == "step":
        return config.lr * config.gamma ** sum(done >= share for share in config.milestones)
    if config.schedule == "constant":
        return config.lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * (done - rising) / (1 - rising)))


def make_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.SGD:
    """SGD over two groups: what decays, and what does not. The rate is set at each step."""
    decays: list[nn.Parameter] = []
    stays: list[nn.Parameter] = []
    for parameter in model.parameters():
        # BatchNorm's scales and all biases are vectors, weights of convolutions and linear layers are not.
        (decays if parameter.ndim > 1 or config.decay_norm_and_bias else stays).append(parameter)
    groups = [{"params": decays, "weight_decay": config.weight_decay}, {"params": stays, "weight_decay": 0.0}]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
    )
