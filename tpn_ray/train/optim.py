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
    """For `step`: when, as shares of the run below 1, or as epochs (the published code: epochs 75 and 125 of 150; the
    paper: 100 and 125)."""

    gamma: float = 0.1
    """For `step`: factor at each milestone."""

    warmup: float = 0.0
    """Share of the run, or number of epochs if at least 1, in which the rate rises linearly from a tenth; for
    one_cycle, the rising part."""

    freeze: tuple[str, ...] = ()
    """Parts that are not trained, by the beginnings of their names, such as backbone.conv1 backbone.layer1; their
    BatchNorm uses its stored statistics."""

    scales: tuple[str, ...] = ()
    """Factors on the learning rate of parts, such as backbone=0.1; of several that fit, the longest name holds."""

    ema_decay: float = 0.0
    """Above 0, an exponential average of the weights is kept, scored and saved as the network; such as 0.9998."""

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
        shares = [point for point in self.milestones if point < 1]
        if (
            len(shares) not in (0, len(self.milestones))
            or any(point <= 0 for point in shares)
            or list(self.milestones) != sorted(self.milestones)
        ):
            raise ConfigError(
                f"milestones={self.milestones} must rise, and be all shares of the run between 0 and 1, or all epochs"
            )
        if self.warmup < 0:
            raise ConfigError(f"warmup={self.warmup} must not be negative")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay={self.ema_decay} must be at least 0 and below 1")
        _ = self.factors

    @property
    def factors(self) -> dict[str, float]:
        """`scales` as beginning of a name -> factor."""
        parsed = {}
        for text in self.scales:
            name, _, factor = text.partition("=")
            try:
                parsed[name] = float(factor)
            except ValueError:
                raise ConfigError(f"scales={text!r} is not written as name=factor, such as backbone=0.1") from None
            if not parsed[name] > 0:
                raise ConfigError(f"scales={text!r} must be above 0; to leave a part as it is, freeze it")
        return parsed


def learning_rate(config: OptimConfig, step: int, steps: int, epochs: int) -> float:
    """The rate of `step` (from 0) out of `steps` in `epochs`; pure, so that nothing about it needs saving."""
    done = step / steps
    warmup = _share(config.warmup, epochs)
    rising = 0.3 if config.schedule == "one_cycle" and not warmup else warmup
    if done < rising:
        return config.lr * (0.1 + 0.9 * done / rising)
    if config.schedule == "step":
        return config.lr * config.gamma ** sum(done >= _share(point, epochs) for point in config.milestones)
    if config.schedule == "constant":
        return config.lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * (done - rising) / (1 - rising)))


def _share(point: float, epochs: int) -> float:
    """A share of the run as it is, a number of epochs as a share."""
    return point if point < 1 else point / epochs


def make_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.SGD:
    """SGD over groups of parameters that decay and that do not, with one `scale` each. The rate is set at each step.

    Frozen parameters need no gradient any more. Raises ConfigError for a name that begins no parameter's.
    """
    names = [name for name, _ in model.named_parameters()]
    for part in (*config.freeze, *config.factors):
        if not any(_begins(name, part) for name in names):
            parts = sorted({".".join(name.split(".")[:2]) for name in names})
            raise ConfigError(f"the network has no part {part!r}; it has: {', '.join(parts)}")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if any(_begins(name, part) for part in config.freeze):
            parameter.requires_grad_(False)
            continue
        fitting = [part for part in config.factors if _begins(name, part)]
        scale = config.factors[max(fitting, key=len)] if fitting else 1.0
        # BatchNorm's scales and all biases are vectors, weights of convolutions and linear layers are not.
        decay = config.weight_decay if parameter.ndim > 1 or config.decay_norm_and_bias else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    if not groups:
        raise ConfigError(f"freeze={config.freeze} leaves nothing to train")
    return torch.optim.SGD(
        [{"params": params, "weight_decay": decay, "scale": scale} for (scale, decay), params in groups.items()],
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
    )


def frozen_modules(config: OptimConfig, model: nn.Module) -> list[nn.Module]:
    """The modules of the frozen parts, whose BatchNorm and dropout stay as in evaluation."""
    return [module for name, module in model.named_modules() if any(_begins(name, part) for part in config.freeze)]


def _begins(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")
