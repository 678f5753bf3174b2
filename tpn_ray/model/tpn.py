"""The Temporal Pyramid Network (paper, section 3): levels of one backbone -> one feature. Runs anywhere, torch only.

    levels -> spatial modulation -> temporal modulation -> information flow -> level fusion -> pyramid fusion

In this module a level is a tensor n c t h w in channels-last memory; the lowest level comes first. Where the paper is
silent or disagrees, the published code decides, because the published weights were trained with it:

  * spatial modulation raises every level to the top's channels (2048; the paper says 1024), by as many convolutions of
    stride 2 as there are stages between them; the drop to half (1024) is the temporal modulation's convolution;
  * temporal modulation is a grouped 3x1x1 convolution, without norm or activation, and a max-pool of alpha_i frames;
  * upsampling in the top-down flow is nearest-neighbor, without parameters; downsampling in the bottom-up flow is a
    3x1x1 convolution, without norm or activation, and a max-pool;
  * what the official code calls parallel flow is `cascade`: its bottom-up pass starts from the top-down result.
    `parallel` is the paper's, where both passes start from the modulated levels.

Alpha changes no weight's shape, so a built network can be given another one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tpn_ray.model.backbones.spec import Stage
from tpn_ray.model.frames import along_time, max_pool_time, per_frame, stretch_time
from tpn_ray.model.layers import ConvNorm, conv

Flow = Literal["isolation", "bottom_up", "top_down", "cascade", "parallel"]
Level = Float[Tensor, "n _ _ _ _"]

PYRAMIDS: dict[Flow, tuple[str, ...]] = {
    "isolation": ("isolation",),
    "bottom_up": ("bottom_up",),
    "top_down": ("top_down",),
    "cascade": ("top_down", "bottom_up"),
    "parallel": ("top_down", "bottom_up"),
}
"""The pyramids of each flow, in the order in which pyramid fusion concatenates them."""


class LevelFusion(nn.Module):
    """All levels of one pyramid -> one feature: pool to the top level's time, mix within groups, concatenate, mix."""

    def __init__(self, levels: int, width: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.mix = nn.ModuleList(ConvNorm(conv(width, width, 1, groups=groups)) for _ in range(levels))
        self.fuse = ConvNorm(conv(levels * width, outputs, 1))

    def forward(self, levels: Sequence[Level], strides: Sequence[int]) -> Level:
        top = levels[-1]
        mixed = []
        for level, stride, mix in zip(levels, strides, self.mix, strict=True):
            mixed.append(per_frame(mix, pool_like(level, strides[-1] // stride, top)))
        return per_frame(self.fuse, torch.cat(mixed, dim=1))


class TemporalPyramid(nn.Module):
    """The neck. It takes one tensor per level, the raw output of a backbone stage."""

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        flow: Flow,
        rates: Sequence[int],
        alpha: Sequence[int],
        spatial_modulation: bool,
        temporal_modulation: bool,
    ) -> None:
        """Build the neck; level i takes every rates[i]-th frame (single-depth pyramid; all 1 where depths differ)."""
        super().__init__()
        self.flow = flow
        self.rates = tuple(rates)
        self.times = tuple(stage.time // stages[0].time for stage in stages)
        channels = [stage.channels for stage in stages]
        self.alpha = tuple(alpha)
        self.temporal_modulation = temporal_modulation
        depth, outputs = len(channels), channels[-1]
        width = outputs // 2
        self.spatial = nn.ModuleList(
            lift(stage, stages[-1]) if spatial_modulation else nn.Sequential() for stage in stages
        )
        entering = [outputs] * depth if spatial_modulation else channels
        groups = group_count(width, entering)
        # With temporal modulation off (table 6b; the paper does not say how), a 1x1x1 of the same groups still brings
        # every level to the pyramid's width, so that only the mixing and pooling of frames is missing.
        kernel = (3, 1) if temporal_modulation else 1
        self.temporal = nn.ModuleList(conv(level, width, kernel, groups=groups) for level in entering)
        self.down = nn.ModuleList()
        if "bottom_up" in PYRAMIDS[flow]:
            self.down.extend(conv(width, width, (3, 1)) for _ in range(depth - 1))
        self.level_fusion = nn.ModuleDict(
            {pyramid: LevelFusion(depth, width, outputs, groups) for pyramid in PYRAMIDS[flow]}
        )
        # The published code always has two pyramids. A single one needs no fusion: its level fusion is the result.
        two = len(PYRAMIDS[flow]) == 2
        self.pyramid_fusion = ConvNorm(conv(2 * outputs, outputs, 1)) if two else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, levels: Sequence[Level]) -> Level:
        strides = self.strides()
        modulated = [self.modulate(i, level) for i, level in enumerate(levels)]
        pyramids = {}
        if self.flow == "isolation":
            pyramids["isolation"] = modulated
        if "top_down" in PYRAMIDS[self.flow]:
            pyramids["top_down"] = top_down(modulated)
        if "bottom_up" in PYRAMIDS[self.flow]:
            start = pyramids["top_down"] if self.flow == "cascade" else modulated
            pyramids["bottom_up"] = bottom_up(start, self.down, strides)
        fused: list[Tensor] = [self.level_fusion[name](pyramid, strides) for name, pyramid in pyramids.items()]
        if self.pyramid_fusion is None:
            return fused[0]
        return per_frame(self.pyramid_fusion, torch.cat(fused, dim=1))

    def strides(self) -> tuple[int, ...]:
        """Return the number of the lowest level's frames per frame of each level."""
        pooled = self.alpha if self.temporal_modulation else (1,) * len(self.alpha)
        return tuple(math.prod(level) for level in zip(self.times, self.rates, pooled, strict=True))

    def modulate(self, index: int, level: Level) -> Level:
        """Apply spatial, then temporal modulation to one level (the paper's F_i)."""
        sampled = per_frame(self.spatial[index], level[:, :, :: self.rates[index]])
        if not self.temporal_modulation:
            return per_frame(self.temporal[index], sampled)
        return max_pool_time(along_time(self.temporal[index], sampled), self.alpha[index])


def lift(stage: Stage, top: Stage) -> nn.Sequential:
    """Build the spatial modulation: convolutions that halve the size until it is the top's, and double the channels.

    In published networks, the last doubling gives the top's channels. Where it does not, the last convolution leads to
    them.
    """
    steps = []
    channels, space = stage.channels, stage.space
    while space < top.space:
        space *= 2
        outputs = 2 * channels if space < top.space else top.channels
        steps.append(ConvNorm(conv(channels, outputs, 3, stride=2)))
        channels = outputs
    return nn.Sequential(*steps)


def group_count(width: int, entering: Iterable[int]) -> int:
    """Return the number of groups of the grouped convolutions.

    It is 32 in every published network; fewer only where channels are too few or no multiple of 32.
    """
    common = math.gcd(width, *entering)
    return max(count for count in range(1, min(32, max(1, width // 8)) + 1) if common % count == 0)


def top_down(levels: Sequence[Level]) -> list[Level]:
    """Add to every level the (already enriched) level above it."""
    enriched = [levels[-1]]
    for level in reversed(levels[:-1]):
        enriched.insert(0, level + stretch_like(enriched[0], level))
    return enriched


def bottom_up(levels: Sequence[Level], down: Iterable[nn.Module], strides: Sequence[int]) -> list[Level]:
    """Add to every level the (already enriched) level below it, convolved and pooled."""
    enriched = [levels[0]]
    for i, (level, convolution) in enumerate(zip(levels[1:], down, strict=True)):
        convolved = along_time(convolution, enriched[i])
        enriched.append(level + pool_like(convolved, strides[i + 1] // strides[i], level))
    return enriched


def pool_like(level: Level, factor: int, target: Level) -> Level:
    """Max-pool time by `factor`, and space to the target's size.

    Space differs only without spatial modulation: the paper then would "up/down-sample the features of TPN
    simultaneously at spatial and temporal dimensions".
    """
    pooled = max_pool_time(level, factor)
    shrink = -(-level.shape[-1] // target.shape[-1])
    if level.shape[-2:] == target.shape[-2:]:
        return pooled
    return per_frame(lambda frames: F.max_pool2d(frames, shrink, shrink, ceil_mode=True), pooled)


def stretch_like(level: Level, target: Level) -> Level:
    """Upsample to the target's frames, and to its size if that differs (see `pool_like`), by nearest neighbor."""
    stretched = stretch_time(level, target.shape[2])
    if level.shape[-2:] == target.shape[-2:]:
        return stretched
    size = list(target.shape[-2:])
    return per_frame(lambda frames: F.interpolate(frames, size, mode="nearest"), stretched)
