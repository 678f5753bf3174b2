"""Inception-v1 over time and space, which S3D, S3D-G, and Inception-I3D share. Runs anywhere, torch only.

Convolution of 7, 1x1x1 and 3x3x3 convolutions, and nine mixed blocks, 3b to 5c. Time is halved by the stem and before
the fourth and the fifth stage. The networks differ in what a convolution is, in how they pad, and in batch norm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tpn_ray.model.backbones.spec import Backbone, BackboneSpec, Stage
from tpn_ray.model.frames import along_time, fold, unfold
from tpn_ray.model.layers import POINT, ConvNorm3d, named

Clips = Float[Tensor, "n _ _ _ _"]
Pads = Callable[[int, int, int], tuple[int, int]]
"""(size, kernel, stride) -> zeros before and after. Maxima may be padded with zeros: they are taken after ReLU."""


@dataclass(frozen=True)
class MixedWidths:
    """Widths of a mixed block."""

    plain: int
    """Outputs of the 1x1x1 branch."""

    first: tuple[int, int]
    """Outputs of the first 3x3x3 branch's reduction, and of the branch."""

    second: tuple[int, int]
    """Outputs of the second 3x3x3 branch's reduction, and of the branch."""

    pooled: int
    """Outputs of the branch after the max-pool."""

    @property
    def outputs(self) -> int:
        """Number of channels of all branches."""
        return self.plain + self.first[1] + self.second[1] + self.pooled


@dataclass(frozen=True)
class InceptionSize:
    """Width of the stem and of the convolution before the stages, and the mixed blocks by stage and letter."""

    stem: int
    entry: int
    mixes: dict[int, dict[str, MixedWidths]]


FULL = InceptionSize(
    stem=64,
    entry=192,
    mixes={
        3: {
            "b": MixedWidths(64, (96, 128), (16, 32), 32),
            "c": MixedWidths(128, (128, 192), (32, 96), 64),
        },
        4: {
            "b": MixedWidths(192, (96, 208), (16, 48), 64),
            "c": MixedWidths(160, (112, 224), (24, 64), 64),
            "d": MixedWidths(128, (128, 256), (24, 64), 64),
            "e": MixedWidths(112, (144, 288), (32, 64), 64),
            "f": MixedWidths(256, (160, 320), (32, 128), 128),
        },
        5: {
            "b": MixedWidths(256, (160, 320), (32, 128), 128),
            "c": MixedWidths(384, (192, 384), (48, 128), 128),
        },
    },
)
TOY = InceptionSize(
    stem=8,
    entry=24,
    mixes={
        3: {"c": MixedWidths(16, (16, 24), (4, 12), 8)},
        4: {"f": MixedWidths(32, (20, 40), (4, 16), 16)},
        5: {"c": MixedWidths(48, (24, 48), (6, 16), 16)},
    },
)
LETTERS = [f"{stage}{letter}" for stage, mixes in FULL.mixes.items() for letter in mixes]
"""The mixed blocks in their order: 3b to 5c."""


@dataclass(frozen=True)
class InceptionKind:
    """What tells the networks apart."""

    separable: bool
    """Whether a 3x3x3 convolution is a 1x3x3 and a 3x1x1 one, each with norm and ReLU."""

    pads: Pads
    """Padding of the max-pools."""

    eps: float
    """Epsilon of batch norm."""

    momentum: float
    """Momentum of batch norm's running statistics."""

    gated: bool = False
    """Whether self-gating follows conv2c and every branch of the mixed blocks."""

    def point(self, inputs: int, outputs: int) -> ConvNorm3d:
        """Build a 1x1x1 convolution."""
        return ConvNorm3d(inputs, outputs, POINT, eps=self.eps, momentum=self.momentum)

    def cube(self, inputs: int, outputs: int) -> nn.Module:
        """Build a 3x3x3 convolution."""
        if self.separable:
            return self.split(inputs, outputs, 3, 1)
        return ConvNorm3d(inputs, outputs, (3, 3, 3), eps=self.eps, momentum=self.momentum)

    def split(self, inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
        """Build a 1xkxk, then a kx1x1 convolution, each with norm and ReLU, and each with its part of the stride."""
        layer = partial(ConvNorm3d, eps=self.eps, momentum=self.momentum)
        return named(
            space=layer(inputs, outputs, (1, kernel, kernel), stride=(1, stride, stride)),
            time=layer(outputs, outputs, (kernel, 1, 1), stride=(stride, 1, 1)),
        )


class SelfGating(nn.Module):
    """Weights between 0 and 1 for the channels, from their mean over time and space (S3D paper, section 4.4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def forward(self, clips: Float[Tensor, "n c t h w"]) -> Float[Tensor, "n c t h w"]:
        weights = torch.sigmoid(self.linear(clips.mean(dim=(2, 3, 4))))
        return clips * weights[:, :, None, None, None]


class Mixed(nn.Module):
    """Four branches of the same input, concatenated: 1x1x1, twice 1x1x1 and 3x3x3, and max-pool and 1x1x1."""

    def __init__(self, inputs: int, mix: MixedWidths, kind: InceptionKind) -> None:
        super().__init__()
        self.pads = kind.pads
        self.branch0 = kind.point(inputs, mix.plain)
        self.reduce1 = kind.point(inputs, mix.first[0])
        self.branch1 = kind.cube(*mix.first)
        self.reduce2 = kind.point(inputs, mix.second[0])
        self.branch2 = kind.cube(*mix.second)
        self.branch3 = kind.point(inputs, mix.pooled)
        widths = (mix.plain, mix.first[1], mix.second[1], mix.pooled)
        self.gates = nn.ModuleList(SelfGating(width) for width in widths) if kind.gated else None

    def forward(self, clips: Clips) -> Clips:
        branches = [
            self.branch0(clips),
            self.branch1(self.reduce1(clips)),
            self.branch2(self.reduce2(clips)),
            self.branch3(max_pool(clips, (3, 3), (1, 1), self.pads)),
        ]
        if self.gates is not None:
            branches = [gate(branch) for gate, branch in zip(self.gates, branches, strict=True)]
        return torch.cat(branches, dim=1)


class Inception(Backbone):
    """The given stem, two convolutions, and the mixed blocks of the stages 3 to `top`."""

    def __init__(self, size: InceptionSize, top: int, kind: InceptionKind, stem: nn.Module) -> None:
        super().__init__()
        self.pads = kind.pads
        self.stem = stem
        self.conv2b = kind.point(size.stem, size.stem)
        self.conv2c = kind.cube(size.stem, size.entry)
        self.gate2c = SelfGating(size.entry) if kind.gated else None
        self.channels: dict[int, int] = {}
        self.stages = nn.ModuleDict()
        inputs = size.entry
        for stage in range(3, top + 1):
            blocks = nn.ModuleDict()
            for letter, mix in size.mixes[stage].items():
                blocks[letter] = Mixed(inputs, mix, kind)
                inputs = mix.outputs
            self.stages[f"mixed{stage}"] = blocks
            self.channels[stage] = inputs

    def initialise(self) -> None:
        """Keep what PyTorch drew: torchvision's S3D and the public ports of S3D-G and Inception-I3D draw nothing
        themselves. (DeepMind's and Google's TensorFlow code has truncated normal weights.)
        """

    def forward(self, clips: Float[Tensor, "n c t h w"]) -> dict[int, Clips]:
        """Return the output of every stage by its number."""
        x = max_pool(self.stem(clips), (1, 3), (1, 2), self.pads)
        x = self.conv2c(self.conv2b(x))
        if self.gate2c is not None:
            x = self.gate2c(x)
        pools = {3: ((1, 3), (1, 2)), 4: ((3, 3), (2, 2)), 5: ((2, 2), (2, 2))}
        levels = {}
        for stage in self.channels:
            x = max_pool(x, *pools[stage], self.pads)
            for block in self.stages[f"mixed{stage}"].values():  # type: ignore[operator]
                x = block(x)
            levels[stage] = x
        return levels


def max_pool(clips: Clips, kernel: tuple[int, int], stride: tuple[int, int], pads: Pads) -> Clips:
    """Max-pool time by the first kernel and stride, height and width by the second, padded with zeros."""
    _, _, t, h, w = clips.shape
    (long, wide), (slow, apart) = kernel, stride
    rim = (*pads(w, wide, apart), *pads(h, wide, apart))
    pooled = unfold(F.max_pool2d(F.pad(fold(clips), rim), wide, apart), t)
    if long == 1:
        return pooled
    ends = (0, 0, *pads(t, long, slow))
    return along_time(lambda columns: F.max_pool2d(F.pad(columns, ends), (long, 1), (slow, 1)), pooled)


def symmetric(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pad as PyTorch's networks do: the same on both sides, whatever is left over at the end is dropped."""
    return (kernel - 1) // 2, (kernel - 1) // 2


def same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pad as TensorFlow does: as little as gives ceil(size / stride) outputs, the odd zero at the end."""
    total = max(kernel - ((size - 1) % stride + 1), 0)
    return total // 2, total - total // 2


def stages(size: InceptionSize) -> dict[int, Stage]:
    """Return the stages; each of them halves time, and so does the stem."""
    outputs = {stage: [mix.outputs for mix in mixes.values()][-1] for stage, mixes in size.mixes.items()}
    return {stage: Stage(channels, space=2**stage, time=2 ** (stage - 2)) for stage, channels in outputs.items()}


def spec(build: Callable[..., Backbone], size: InceptionSize, **more: Any) -> BackboneSpec:
    """Return the entry of one of the networks."""
    return BackboneSpec(
        build=partial(build, size),
        stages=stages(size),
        head_std=None,  # the public ports draw no weights
        frames="convolve",
        sampling="clip",
        **more,
    )
