"""Activations that are computed again in the backward pass instead of kept. Runs anywhere, torch only."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from tpn_ray.errors import ConfigError
from tpn_ray.model.backbones.spec import Backbone


def recompute_blocks(backbone: Backbone) -> int:
    """Let every block of the stages keep only its input for the backward pass, and return the number of blocks.

    BatchNorm then sees each clip twice in training: the caller puts its statistics back. A copy of the network made
    afterwards would compute with the blocks of the original. Raises ConfigError for a backbone without such blocks.
    """
    stages = [getattr(module, "stages", None) for module in backbone.modules()]
    containers = nn.Sequential | nn.ModuleList | nn.ModuleDict
    blocks: list[nn.Module] = []
    for stage in (stage for each in stages if isinstance(each, nn.ModuleDict) for stage in each.children()):
        blocks += stage.children() if isinstance(stage, containers) else [stage]
    if not blocks:
        raise ConfigError("recompute=True: the backbone has no stages of blocks that could be computed again")
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return len(blocks)
