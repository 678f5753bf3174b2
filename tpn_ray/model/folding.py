"""Batch norm folded into the convolutions before it, for scoring. Runs anywhere, torch only."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tpn_ray.model.layers import ConvNorm, ConvNorm3d


def fold_batch_norms(model: nn.Module) -> int:
    """Replace each convolution and its batch norm, in place, by one convolution with bias; return how many.

    A network in evaluation mode then computes the same, but for rounding. Batch norms that follow no convolution stay,
    and so do those of timm's networks.
    """
    pairs = [module for module in model.modules() if isinstance(module, ConvNorm | ConvNorm3d) and module.norm]
    for pair in pairs:
        assert isinstance(pair.norm, nn.BatchNorm2d)
        pair.conv = fuse_conv_bn_eval(pair.conv, pair.norm)
        pair.norm = None
    return len(pairs)
