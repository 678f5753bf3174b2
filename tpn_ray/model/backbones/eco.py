"""ECO (Zolfaghari et al., ECCV 2018): BN-Inception on every frame, then a 3D ResNet-18. Runs anywhere, torch only.

eco is the paper's ECO Lite; eco_full has the rest of BN-Inception beside the 3D network. Both, and the names of their
weights, are those of mzolfaghi/ECO-pytorch, read in a fork (vnigade/ECO-pytorch). Every convolution has a bias, even
before norm; a residual block keeps what precedes norm; and where it strides, its shortcut is a 3x3x3 convolution.

Stages 3 to 5 are the residual stages. The last of eco_full also has the frames' features, averaged to as many frames as
the 3D network leaves; so their mean over time is the published one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tpn_ray.model.backbones.spec import Backbone, BackboneSpec, Published, Stage, Substitutions, stage_in_name
from tpn_ray.model.frames import fold, unfold
from tpn_ray.model.layers import ConvNorm, ConvNorm3d, batch_norm, conv3d, convolve

Frames = Float[Tensor, "nt _ _ _"]
Clips = Float[Tensor, "n _ _ _ _"]
CUBE = (3, 3, 3)
STRIDE = (2, 2, 2)


@dataclass(frozen=True)
class EcoMix:
    """Widths of a block of BN-Inception."""

    one: int
    """Outputs of the 1x1 branch; 0 in blocks that halve the size, which have none."""

    three: tuple[int, int]
    """Outputs of the reduction before the 3x3 convolution, and of it."""

    double: tuple[int, int, int]
    """Outputs of the reduction before two 3x3 convolutions, and of them."""

    pooled: int = 0
    """Outputs of the branch after the pool; 0 in blocks that halve the size, where it keeps its channels."""

    pool: str = "mean"
    """Pool of that branch, mean or max."""


@dataclass(frozen=True)
class EcoSize:
    """Widths of the stem, of the residual stages, and of the blocks; the 3D network starts inside of 3c."""

    stem: tuple[int, int]
    stages: tuple[int, int, int]
    below: dict[str, EcoMix]
    beside: dict[str, EcoMix]


FULL = EcoSize(
    stem=(64, 192),
    stages=(128, 256, 512),
    below={
        "3a": EcoMix(64, (64, 64), (64, 96, 96), 32),
        "3b": EcoMix(64, (64, 96), (64, 96, 96), 64),
        "3c": EcoMix(0, (128, 160), (64, 96, 96)),
    },
    beside={
        "4a": EcoMix(224, (64, 96), (96, 128, 128), 128),
        "4b": EcoMix(192, (96, 128), (96, 128, 128), 128),
        "4c": EcoMix(160, (128, 160), (128, 160, 160), 128),
        "4d": EcoMix(96, (128, 192), (160, 192, 192), 128),
        "4e": EcoMix(0, (128, 192), (192, 256, 256)),
        "5a": EcoMix(352, (192, 320), (160, 224, 224), 128),
        "5b": EcoMix(352, (192, 320), (192, 224, 224), 128, "max"),
    },
)
TOY = EcoSize(
    stem=(8, 24),
    stages=(16, 32, 64),
    below={"3b": EcoMix(8, (8, 12), (8, 12, 12), 8), "3c": EcoMix(0, (16, 20), (8, 12, 12))},
    beside={"4e": EcoMix(0, (16, 24), (24, 32, 32)), "5b": EcoMix(44, (24, 40), (24, 28, 28), 16, "max")},
)


class Block(nn.Module):
    """A block of BN-Inception. One without its branches `whole` ends in the middle of the double branch."""

    def __init__(self, inputs: int, mix: EcoMix, *, whole: bool = True) -> None:
        super().__init__()
        self.halves = mix.one == 0
        stride = 2 if self.halves else 1
        reduction, first, second = mix.double
        self.twice = nn.ModuleList((flat(inputs, reduction, 1), flat(reduction, first, 3)))
        self.middle, self.outputs = first, first
        if not whole:
            return
        self.twice.append(flat(first, second, 3, stride))
        self.reduce = flat(inputs, mix.three[0], 1)
        self.three = flat(*mix.three, 3, stride)
        self.pool = mix.pool
        self.one = None if self.halves else flat(inputs, mix.one, 1)
        self.pooled = None if self.halves else flat(inputs, mix.pooled, 1)
        self.outputs = mix.one + mix.three[1] + second + (inputs if self.halves else mix.pooled)

    def start(self, frames: Frames) -> Frames:
        """Return the double branch after its first 3x3 convolution, where the 3D network takes over."""
        return self.twice[1](self.twice[0](frames))  # type: ignore[no-any-return]

    def finish(self, frames: Frames, middle: Frames) -> Frames:
        """Return all branches, given what `start` returned."""
        branches = [self.three(self.reduce(frames)), self.twice[2](middle)]
        if self.one is None or self.pooled is None:
            # The published code fails at odd sizes, where its max-pool is smaller than its convolutions.
            padded = F.pad(frames, (0, frames.shape[3] % 2, 0, frames.shape[2] % 2))
            return torch.cat((*branches, F.max_pool2d(padded, 3, 2, ceil_mode=True)), dim=1)
        pooled = F.max_pool2d(frames, 3, 1, 1) if self.pool == "max" else F.avg_pool2d(frames, 3, 1, 1)
        return torch.cat((self.one(frames), *branches, self.pooled(pooled)), dim=1)

    def forward(self, frames: Frames) -> Frames:
        return self.finish(frames, self.start(frames))


class EcoResidual(nn.Module):
    """Two residual blocks that keep what precedes norm; the first of stage 3 is only a convolution."""

    def __init__(self, inputs: int, outputs: int, *, halves: bool) -> None:
        super().__init__()
        self.a1 = ConvNorm3d(inputs, outputs, CUBE, stride=STRIDE, bias=True) if halves else None
        self.down = conv3d(inputs, outputs, CUBE, stride=STRIDE, bias=True) if halves else None
        self.a2 = conv3d(outputs if halves else inputs, outputs, CUBE, bias=True)
        self.a_norm = nn.BatchNorm2d(outputs)
        self.b1 = ConvNorm3d(outputs, outputs, CUBE, bias=True)
        self.b2 = conv3d(outputs, outputs, CUBE, bias=True)
        self.b_norm = nn.BatchNorm2d(outputs)

    def forward(self, clips: Clips) -> Clips:
        if self.a1 is None or self.down is None:
            kept = convolve(self.a2, clips)
        else:
            kept = convolve(self.a2, self.a1(clips)) + convolve(self.down, clips)
        inner = convolve(self.b2, self.b1(norm_relu(self.a_norm, kept)))
        return norm_relu(self.b_norm, inner + kept)


class Eco(Backbone):
    """BN-Inception up to the middle of 3c, and the residual stages 3 to `top`; the rest of BN-Inception if `full`."""

    def __init__(self, size: EcoSize, top: int, *, full: bool) -> None:
        super().__init__()
        first, second = size.stem
        self.stem = nn.ModuleDict(
            {"first": flat(3, first, 7, 2), "reduce": flat(first, first, 1), "second": flat(first, second, 3)}
        )
        self.full = full and top == 5
        self.blocks = nn.ModuleDict()
        inputs = second
        for name, mix in size.below.items():
            block = Block(inputs, mix, whole=self.full or name != "3c")
            self.blocks[name], inputs = block, block.outputs
        self.channels: dict[int, int] = {}
        self.stages = nn.ModuleDict()
        entering = size.below["3c"].double[1]
        for stage, outputs in zip(range(3, top + 1), size.stages, strict=False):
            self.stages[f"res{stage}"] = EcoResidual(entering, outputs, halves=stage > 3)
            self.channels[stage] = entering = outputs
        self.beside = nn.ModuleDict()
        for name, mix in size.beside.items() if self.full else ():
            block = Block(inputs, mix)
            self.beside[name], inputs = block, block.outputs
        if self.full:
            self.channels[top] += inputs

    def initialise(self) -> None:
        """Draw Xavier-uniform convolutions without bias, as the public code does with what its two pretrained files
        lack.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, clips: Float[Tensor, "n c t h w"]) -> dict[int, Clips]:
        """Return the output of every stage by its number."""
        t = clips.shape[2]
        x = F.max_pool2d(self.stem["first"](fold(clips)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.stem["second"](self.stem["reduce"](x)), 3, 2, ceil_mode=True)
        *below, last = self.blocks.values()
        for block in below:
            x = block(x)
        middle = last.start(x)  # type: ignore[operator]
        levels, y = {}, unfold(middle, t)
        for stage in self.channels:
            y = levels[stage] = self.stages[f"res{stage}"](y)
        if self.full:
            x = last.finish(x, middle)  # type: ignore[operator]
            for block in self.beside.values():
                x = block(x)
            n, _, groups, high, wide = y.shape
            apart = unfold(x, t).reshape(n, -1, groups, t // groups, high, wide).mean(dim=3)
            levels[max(levels)] = torch.cat((apart, y), dim=1)
        return levels


def flat(inputs: int, outputs: int, kernel: int, stride: int = 1) -> ConvNorm:
    """Build a convolution over frames, with a bias, norm, and ReLU."""
    return ConvNorm(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2))


def norm_relu(norm: nn.BatchNorm2d, clips: Clips) -> Clips:
    """Apply norm and ReLU."""
    return unfold(F.relu(batch_norm(norm, fold(clips)), inplace=True), clips.shape[2])


def stages(size: EcoSize, *, full: bool) -> dict[int, Stage]:
    """Return the stages; the fourth and the fifth halve time."""
    widths = list(size.stages)
    if full:
        last = size.beside["5b"]
        widths[-1] += last.one + last.three[1] + last.double[2] + last.pooled
    return {3 + i: Stage(width, space=2 ** (3 + i), time=2**i) for i, width in enumerate(widths)}


ECO_PYTORCH: Substitutions = (
    (r"^stem\.first\.", "conv1_7x7_s2."),
    (r"^stem\.reduce\.", "conv2_3x3_reduce."),
    (r"^stem\.second\.", "conv2_3x3."),
    (r"^(?:blocks|beside)\.(\w+)\.", r"inception_\1_"),
    (r"_one\.", "_1x1."),
    (r"_reduce\.(conv|norm)", r"_3x3_reduce.\1"),
    (r"^conv2_3x3_3x3_", "conv2_3x3_"),
    (r"_three\.", "_3x3."),
    (r"_twice\.0\.", "_double_3x3_reduce."),
    (r"_twice\.(\d)\.", r"_double_3x3_\1."),
    (r"_pooled\.", "_pool_proj."),
    (r"^stages\.(res\d)\.([ab])_norm\.", r"\1\2_bn."),
    (r"^stages\.(res\d)\.([ab])(\d)\.", r"\1\2_\3."),
    (r"^stages\.(res\d)\.down\.", r"\1a_down."),
    (r"\.conv\.", "."),
    (r"\.norm\.", "_bn."),
    (r"^(conv|inception|res)", r"base_model.\1"),
    (r"^head\.linear\.", "new_fc."),
)

SPECS: dict[str, BackboneSpec] = {
    name: BackboneSpec(
        build=partial(Eco, size, full=full),
        stages=stages(size, full=full),
        stage_of=lambda name: 5 if name.startswith("beside.") else stage_in_name(name),
        head_std=0.001,
        frames="convolve",
        sampling="segments",
        names={"eco_pytorch": ECO_PYTORCH},
        licence="BSD-2-Clause (code of zhang-can/ECO-pytorch, of which mzolfaghi/ECO-pytorch is a fork)",
        published=Published(frames=8, top1="" if full else "39.6 % on Something-Something V1", source="the TPN paper"),
        frames_multiple=4 if full else 1,
        least_px=7,
    )
    for name, size, full in (
        ("eco", FULL, False),
        ("eco_full", FULL, True),
        ("eco_toy", TOY, False),
        ("eco_full_toy", TOY, True),
    )
}
