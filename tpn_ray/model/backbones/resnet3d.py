"""Residual networks whose blocks convolve time, and may stride in it: what I3D, SlowFast, CSN, R(2+1)D, and X3D share.
Runs anywhere, torch only.

A network is a `Design` (its numbers), a stem, and a function that builds the block at a `Place`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tpn_ray.model.backbones.resnet2d import FIRST_STAGE, MMACTION2, Size
from tpn_ray.model.backbones.spec import Backbone, Stage, Substitutions
from tpn_ray.model.frames import along_time, per_frame
from tpn_ray.model.layers import POINT, ConvNorm3d, Triple, named

SPACE: tuple[Triple, ...] = (POINT, (1, 2, 2), (1, 2, 2), (1, 2, 2))
"""Strides of res2 to res5 where time is never strided."""

SPACE_AND_TIME: tuple[Triple, ...] = (POINT, (2, 2, 2), (2, 2, 2), (2, 2, 2))

NAMES_3D: Substitutions = ((r"\.branch\.", "."), *MMACTION2)
"""mmaction2's names for these networks."""

BARE = "mmaction2_backbone"
"""The layout of mmaction2's files that hold a pretrained backbone alone, whose names have no prefix."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """The numbers of a network."""

    size: Size
    """Blocks per stage, and channels of the stem."""

    expansion: int = 4
    """A stage's output channels per inner channel."""

    strides: tuple[Triple, ...] = SPACE
    """Strides of res2, res3, res4, res5, which their first blocks carry."""

    stem_stride: int = 1
    """Stride in frames of the stem; in height and width it is 2."""

    pool: int | None = 1
    """Stride in frames of the max-pool of 3x3 pixels after the stem, whose stride in height and width is 2; None for no
    pool."""

    halve: bool = False
    """Whether pairs of frames are max-pooled after res2."""

    zero_residual: bool = False
    """Whether fresh residual branches start at zero."""

    fused: Mapping[int, int] = field(default_factory=dict)
    """Channels that enter a stage in addition to the previous stage's output."""

    def stages(self) -> dict[int, Stage]:
        """Return the stages' channels and strides."""
        time = self.stem_stride * (self.pool or 1) * (2 if self.halve else 1)
        space = 2 if self.pool is None else 4
        table = {}
        for i, stride in enumerate(self.strides):
            time, space = time * stride[0], space * stride[1]
            table[FIRST_STAGE + i] = Stage(self.expansion * self.size.width * 2**i, space=space, time=time)
        return table


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a block is, and what follows from that."""

    stage: int
    """Number of the stage, from 2."""

    block: int
    """Index in the stage."""

    inputs: int
    """Channels that enter the block."""

    width: int
    """Inner channels of the stage's blocks."""

    outputs: int
    """Channels that leave it."""

    stride: Triple
    """Stride of the block."""


class ResidualBlock(nn.Module):
    """A branch and a shortcut, added; then ReLU, then whatever follows in the block."""

    def __init__(
        self, branch: dict[str, nn.Module], shortcut: nn.Module | None, attention: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.branch = named(**branch)
        self.shortcut = shortcut
        self.attention = attention

    def forward(self, clips: Float[Tensor, "n c t h w"]) -> Float[Tensor, "n k s i j"]:
        kept = clips if self.shortcut is None else self.shortcut(clips)
        y = F.relu(self.branch(clips) + kept)
        return y if self.attention is None else self.attention(y)


class ResNet3d(Backbone):
    """A stem and the stages res2 to `top`, returning the output of every stage."""

    def __init__(self, design: Design, top: int, stem: nn.Module, build: Callable[[Place], nn.Module]) -> None:
        super().__init__()
        self.design = design
        self.zero_residual = design.zero_residual
        self.stem = stem
        self.stages = nn.ModuleDict()
        self.channels: dict[int, int] = {}
        inputs = design.size.width
        for stage in range(FIRST_STAGE, top + 1):
            width = design.size.width * 2 ** (stage - FIRST_STAGE)
            inputs += design.fused.get(stage, 0)
            self.stages[f"res{stage}"] = blocks = nn.Sequential()
            for block in range(design.size.blocks[stage - FIRST_STAGE]):
                stride = POINT if block else design.strides[stage - FIRST_STAGE]
                outputs = design.expansion * width
                place = Place(stage=stage, block=block, inputs=inputs, width=width, outputs=outputs, stride=stride)
                blocks.append(build(place))
                inputs = outputs
            self.channels[stage] = inputs

    def forward(self, clips: Float[Tensor, "n c t h w"]) -> dict[int, Float[Tensor, "n _ _ _ _"]]:
        """Return the output of every stage by its number."""
        x = self.enter(clips)
        levels = {}
        for stage in self.channels:
            levels[stage] = x = self.advance(stage, x)
        return levels

    def enter(self, clips: Float[Tensor, "n c t h w"]) -> Float[Tensor, "n k s i j"]:
        """Apply the stem and its pool."""
        x: Tensor = self.stem(clips)
        if self.design.pool is None:
            return x
        return per_frame(lambda frames: F.max_pool2d(frames, 3, 2, 1), x[:, :, :: self.design.pool])

    def advance(self, stage: int, x: Float[Tensor, "n c t h w"]) -> Float[Tensor, "n k s i j"]:
        """Apply a stage to the output of the previous one."""
        y: Tensor = self.stages[f"res{stage}"](x)
        if stage == FIRST_STAGE and self.design.halve:
            return along_time(lambda columns: F.max_pool2d(columns, (2, 1), (2, 1)), y)
        return y


def bottleneck(place: Place, *, convolve_time: bool, attention: nn.Module | None = None) -> ResidualBlock:
    """Build the block of 1x1x1 (3x1x1 if `convolve_time`), 1x3x3, 1x1x1; the 1x3x3 carries the stride."""
    kernel = (3, 1, 1) if convolve_time else POINT
    branch: dict[str, nn.Module] = {
        "conv1": ConvNorm3d(place.inputs, place.width, kernel),
        "conv2": ConvNorm3d(place.width, place.width, (1, 3, 3), stride=place.stride),
        "conv3": ConvNorm3d(place.width, place.outputs, POINT, relu=False),
    }
    return ResidualBlock(branch, shortcut(place), attention)


def shortcut(place: Place, eps: float = 1e-5) -> ConvNorm3d | None:
    """Build the convolution that adapts a block's input to its output, if they differ."""
    if place.stride == POINT and place.inputs == place.outputs:
        return None
    return ConvNorm3d(place.inputs, place.outputs, POINT, stride=place.stride, eps=eps, relu=False)
