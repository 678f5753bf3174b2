"""The network as the published code computes it: Conv3d, BatchNorm over n t h w, MaxPool3d. Runs anywhere, torch only.

Takes the weights of a Recognizer: it is the arithmetic "published", and what the fast one is compared with in tests and
benchmarks. It shares no arithmetic with `frames.py`, `tpn.py` and the blocks, on purpose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tpn_ray.model.heads import AuxiliaryHead, ClassificationHead
from tpn_ray.model.layers import ConvNorm
from tpn_ray.model.resnet2d import Bottleneck, ResNet
from tpn_ray.model.tpn import LevelFusion, TemporalPyramid

if TYPE_CHECKING:
    from tpn_ray.model.recognizer import Recognizer


def plain_forward(model: Recognizer, clips: Float[Tensor, "n c t h w"]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The fields of Scores, for every flow and backbone, with spatial and temporal modulation on."""
    stages = backbone(model.backbone, clips)
    levels = [stages[level] for level in model.levels]
    auxiliary: list[Tensor] = []
    if model.training:
        auxiliary = [
            auxiliary_head(cast(AuxiliaryHead, head), level)
            for head, level in zip(model.auxiliary, levels, strict=False)
        ]
    if model.neck is None:
        return classification_head(model.head, levels[-1]), tuple(auxiliary)
    if model.config.rates:
        levels = [levels[0][:, :, ::rate] for rate in model.config.rates]
    return classification_head(model.head, pyramid(model.neck, levels)), tuple(auxiliary)


def conv3d(convolution: nn.Module, clips: Tensor) -> Tensor:
    """A convolution of ours as the Conv3d it stands for; over frames, of 2D backbones, as it is."""
    assert isinstance(convolution, nn.Conv2d)
    if clips.ndim == 4:
        return cast(Tensor, convolution(clips))
    kernel, (stride, _), groups = convolution.weight, convolution.stride, convolution.groups
    high, wide = kernel.shape[2:]
    if high == wide:
        return F.conv3d(clips, kernel.unsqueeze(2), None, (1, stride, stride), (0, high // 2, wide // 2), groups=groups)
    return F.conv3d(clips, kernel.unsqueeze(4), None, (1, 1, 1), (high // 2, 0, 0), groups=groups)


def norm3d(norm: nn.Module, clips: Tensor) -> Tensor:
    """Batch norm; counts its batches as the module itself would."""
    assert isinstance(norm, nn.BatchNorm2d)
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    mean, variance = norm.running_mean, norm.running_var
    return F.batch_norm(clips, mean, variance, norm.weight, norm.bias, norm.training, 0.1, norm.eps)


def unit(block: nn.Module, clips: Tensor) -> Tensor:
    """Convolution, norm and mostly ReLU."""
    assert isinstance(block, ConvNorm)
    y = norm3d(block.norm, conv3d(block.conv, clips))
    return F.relu(y, inplace=True) if block.relu else y


def backbone(net: ResNet, clips: Tensor) -> dict[int, Tensor]:
    """Stem and stages. 2D backbones see a batch of frames, as published; the neck gets clips again."""
    blocks = {stage: list(cast(nn.ModuleList, net.stages[f"res{stage}"])) for stage in net.channels}
    t, flat = clips.shape[2], not any(block.time == "convolve" for stage in blocks.values() for block in stage)
    x = unit(net.stem, clips.transpose(1, 2).flatten(0, 1) if flat else clips)
    x = F.max_pool2d(x, 3, 2, 1) if flat else F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    stages = {}
    for stage, members in blocks.items():
        for block in members:
            x = bottleneck(cast(Bottleneck, block), x, t)
        stages[stage] = x.view(-1, t, *x.shape[1:]).transpose(1, 2) if flat else x
    return stages


def bottleneck(block: Bottleneck, x: Tensor, t: int) -> Tensor:
    """One residual block."""
    moved = shifted(x, t) if block.time in ("shift", "shift_inplace") else x
    y = unit(block.conv3, unit(block.conv2, unit(block.conv1, moved)))
    if block.shortcut is None:
        return F.relu(y + x, inplace=True)
    return F.relu(y + unit(block.shortcut, moved if block.time == "shift_inplace" else x), inplace=True)


def shifted(frames: Tensor, t: int) -> Tensor:
    """Temporal shift."""
    x, eighth = frames.view(-1, t, *frames.shape[1:]), frames.shape[1] // 8
    moved = torch.zeros_like(x)
    moved[:, :-1, :eighth] = x[:, 1:, :eighth]
    moved[:, 1:, eighth : 2 * eighth] = x[:, :-1, eighth : 2 * eighth]
    moved[:, :, 2 * eighth :] = x[:, :, 2 * eighth :]
    return moved.flatten(0, 1)


def pyramid(neck: TemporalPyramid, levels: list[Tensor]) -> Tensor:
    """The neck: modulation, flow, fusion."""
    alpha = neck.alpha
    strides = [rate * pool for rate, pool in zip(neck.rates, alpha, strict=True)]
    modulated = []
    for i, level in enumerate(levels):
        for step in cast(nn.Sequential, neck.spatial[i]):
            level = unit(step, level)  # noqa: PLW2901
        modulated.append(pool_time(conv3d(neck.temporal[i], level), alpha[i]))
    rising = list(modulated)
    for i in reversed(range(len(levels) - 1)):
        rising[i] = rising[i] + F.interpolate(rising[i + 1], size=rising[i].shape[2:], mode="nearest")
    sinking = list(rising if neck.flow == "cascade" else modulated)
    for i in range(len(neck.down)):
        pooled = pool_time(conv3d(neck.down[i], sinking[i]), strides[i + 1] // strides[i])
        sinking[i + 1] = sinking[i + 1] + pooled
    made: dict[str, list[Tensor]] = {"isolation": modulated, "top_down": rising, "bottom_up": sinking}
    fuse: Callable[[str], Tensor] = lambda name: level_fusion(neck.level_fusion[name], made[name], strides)  # noqa: E731
    fused = [fuse(name) for name in neck.level_fusion]
    return fused[0] if neck.pyramid_fusion is None else unit(neck.pyramid_fusion, torch.cat(fused, dim=1))


def level_fusion(fusion: nn.Module, levels: list[Tensor], strides: list[int]) -> Tensor:
    """Pool, mix, concatenate, mix."""
    assert isinstance(fusion, LevelFusion)
    pooled = [pool_time(level, strides[-1] // stride) for level, stride in zip(levels, strides, strict=True)]
    mixed = [unit(mix, level) for mix, level in zip(fusion.mix, pooled, strict=True)]
    return unit(fusion.fuse, torch.cat(mixed, dim=1))


def pool_time(x: Tensor, factor: int) -> Tensor:
    """Temporal max-pool."""
    return F.max_pool3d(x, (factor, 1, 1), (factor, 1, 1), ceil_mode=True)


def auxiliary_head(head: AuxiliaryHead, level: Tensor) -> Tensor:
    """Auxiliary head."""
    return classification_head(head.head, unit(head.deepen, level))


def classification_head(head: ClassificationHead, feature: Tensor) -> Tensor:
    """Global pool, dropout, linear."""
    scores: Tensor = head.linear(head.dropout(F.adaptive_avg_pool3d(feature, 1).flatten(1)))
    return scores
