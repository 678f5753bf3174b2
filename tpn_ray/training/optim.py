"""The optimizer, its parameter groups, and the learning rate as a pure function of the step. Torch only."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tpn_ray.errors import ConfigError
from tpn_ray.model.backbones.spec import STEM, BackboneSpec
from tpn_ray.recipe import OptimConfig


def learning_rate(config: OptimConfig, step: float, steps: int, epochs: int) -> float:
    """Return the rate of `step` (from 0) out of `steps` in `epochs`. It is pure, so nothing about it needs saving."""
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
    """Return a share of the run unchanged, and convert a number of epochs to a share."""
    return point if point < 1 else point / epochs


def layer_scale(name: str, spec: BackboneSpec, decay: float) -> float:
    """Return the learning rate factor of a parameter: `decay` to the power of its distance from the network's end.

    The neck and the heads have distance 0, the stages 1, 2, ... from the last to the first, and the stem one more
    (Bao et al., "BEiT", ICLR 2022, which counts blocks; stages are what all backbones here have in common).
    """
    part, _, rest = name.partition(".")
    if part != "backbone":
        return 1.0
    depths = {stage: depth for depth, stage in enumerate([STEM, *sorted(spec.stages)])}
    return decay ** (len(depths) - depths[spec.stage_of(rest)])


def make_optimizer(config: OptimConfig, model: nn.Module, spec: BackboneSpec) -> torch.optim.Optimizer:
    """Return the optimizer over groups of parameters with and without decay, each with one `scale`. The rate is set at
    each step.

    Frozen parameters stop requiring gradients. Raises ConfigError for a name that is no parameter's prefix.
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
        scale *= layer_scale(name, spec, config.layer_decay)
        # BatchNorm's scales and all biases are vectors; weights of convolutions and linear layers are not.
        decay = config.weight_decay if parameter.ndim > 1 or config.decay_norm_and_bias else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    if not groups:
        raise ConfigError(f"freeze={config.freeze} leaves nothing to train")
    listed = [{"params": params, "weight_decay": decay, "scale": scale} for (scale, decay), params in groups.items()]
    fused = next(model.parameters()).device.type != "meta"  # needs everything `laid_out_like` the parameters
    if config.optimizer == "adamw":
        return torch.optim.AdamW(listed, lr=config.lr, betas=config.betas, fused=fused)
    return torch.optim.SGD(listed, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused)


def laid_out_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return a gradient or an optimizer's tensor in the memory order of its parameter; a copy only if it has another.

    On a GPU, an optimizer updates all parameters in a few launches only if they agree.
    """
    sides = zip(parameter.shape, tensor.stride(), parameter.stride(), strict=True)
    same = all(size == 1 or own == its for size, own, its in sides)
    return tensor if same else torch.empty_like(parameter).copy_(tensor)


def frozen_modules(config: OptimConfig, model: nn.Module) -> list[nn.Module]:
    """Return the modules of the frozen parts, whose BatchNorm and dropout stay in evaluation mode."""
    return [module for name, module in model.named_modules() if any(_begins(name, part) for part in config.freeze)]


def _begins(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")
