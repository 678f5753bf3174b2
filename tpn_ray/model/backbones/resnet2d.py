"""ResNet over frames: TSN (every frame alone) and TSM (channels shifted between frames). Runs anywhere, torch only.

The residual network itself is shared with `slowonly`: blocks differ only in how their first convolution treats time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tpn_ray.model.backbones.spec import NOTHING, Backbone, BackboneSpec, Published, Shift, Stage, Substitutions
from tpn_ray.model.frames import along_time, fold, unfold
from tpn_ray.model.layers import ConvNorm, conv

Time = Literal["apart", "shift", "shift_inplace", "convolve"]
"""How a block's first convolution treats time.

apart          not at all
shift          an eighth of the channels from the next frame, an eighth from the previous; the shortcut is not shifted
shift_inplace  the same, but the convolution in the shortcut also sees the shifted frames
convolve       it is 3x1x1
"""

EXPANSION = 4
FIRST_STAGE = 2  # stages carry the paper's names: res2, res3, res4, res5
STAGE_NUMBERS = (2, 3, 4, 5)


@dataclass(frozen=True)
class Size:
    """Depth and width of a residual network."""

    blocks: tuple[int, int, int, int]
    """Number of bottleneck blocks in res2, res3, res4, res5."""

    width: int
    """Channels of the stem and of res2's inner convolutions; each stage doubles them and outputs four times as many."""


R50 = Size(blocks=(3, 4, 6, 3), width=64)
R101 = Size(blocks=(3, 4, 23, 3), width=64)
TOY = Size(blocks=(1, 1, 1, 1), width=8)


class Bottleneck(nn.Module):
    """1x1 (3x1x1 for `convolve`), 3x3, 1x1, and a shortcut; the 3x3 carries the stride."""

    def __init__(self, inputs: int, width: int, stride: int, time: Time) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.time = time
        self.conv1 = ConvNorm(conv(inputs, width, (3, 1) if time == "convolve" else 1))
        self.conv2 = ConvNorm(conv(width, width, 3, stride=stride))
        self.conv3 = ConvNorm(conv(width, outputs, 1), relu=False)
        self.shortcut: ConvNorm | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = ConvNorm(conv(inputs, outputs, 1, stride=stride), relu=False)

    def forward(self, frames: Float[Tensor, "nt c h w"], t: int) -> Float[Tensor, "nt k i j"]:
        moved = shift(frames, t) if self.time in ("shift", "shift_inplace") else frames
        over_time = self.time == "convolve"
        inner = fold(along_time(self.conv1, unfold(moved, t))) if over_time else self.conv1(moved)
        inner = self.conv3(self.conv2(inner))
        kept = frames
        if self.shortcut is not None:
            # The official code shifts the input of the shortcut's convolution; mmaction2 and TSM itself do not.
            kept = self.shortcut(moved if self.time == "shift_inplace" else frames)
        return F.relu(inner.add_(kept), inplace=True)


class ResNet(Backbone):
    """A stem and the stages res2 to `top`, returning the output of every stage. No stage strides in time."""

    def __init__(
        self, size: Size, top: int, time_of: Callable[[int, int], Time], *, zero_residual: bool = False
    ) -> None:
        """Build the stages; `time_of(stage, block)` says how that block treats time."""
        super().__init__()
        self.zero_residual = zero_residual
        self.stem = ConvNorm(conv(3, size.width, 7, stride=2))
        self.channels: dict[int, int] = {}
        self.stages = nn.ModuleDict()
        inputs = size.width
        for stage in range(FIRST_STAGE, top + 1):
            width = size.width * 2 ** (stage - FIRST_STAGE)
            blocks = []
            for block in range(size.blocks[stage - FIRST_STAGE]):
                stride = 2 if block == 0 and stage > FIRST_STAGE else 1
                blocks.append(Bottleneck(inputs, width, stride, time_of(stage, block)))
                inputs = EXPANSION * width
            self.stages[f"res{stage}"] = nn.ModuleList(blocks)
            self.channels[stage] = inputs

    def forward(self, clips: Float[Tensor, "n c t h w"]) -> dict[int, Float[Tensor, "n _ t _ _"]]:
        """Return the output of every stage by its number."""
        t = clips.shape[2]
        x = F.max_pool2d(self.stem(fold(clips)), 3, 2, 1)
        levels = {}
        for stage in self.channels:
            for block in self.stages[f"res{stage}"]:  # type: ignore[attr-defined]
                x = block(x, t)
            levels[stage] = unfold(x, t)
        return levels


def shift(frames: Float[Tensor, "nt c h w"], t: int) -> Float[Tensor, "nt c h w"]:
    """Shift channels as in TSM: an eighth from the next frame, an eighth from the previous; zeros at the ends."""
    nt, c, h, w = frames.shape
    memory = frames.permute(0, 2, 3, 1).reshape(nt // t, t, h, w, c)
    eighth = c // 8
    later = F.pad(memory[:, 1:, ..., :eighth], (0, 0, 0, 0, 0, 0, 0, 1))
    earlier = F.pad(memory[:, :-1, ..., eighth : 2 * eighth], (0, 0, 0, 0, 0, 0, 1, 0))
    moved = torch.cat((later, earlier, memory[..., 2 * eighth :]), dim=-1)
    return moved.flatten(0, 1).permute(0, 3, 1, 2)


def tsn(size: Size, top: int) -> ResNet:
    """Build a 2D ResNet that sees every frame alone; frames first meet in the pyramid (or the mean of the head)."""
    return ResNet(size, top, lambda stage, block: "apart")


def tsm(size: Size, top: int, placement: Shift = "residual") -> ResNet:
    """Build a 2D ResNet with temporal shift.

    `residual` is mmaction2's, which in networks of 23 or more blocks in res4 shifts only every second block; `inplace`
    is the official TPN code's default, which shifts in every block whatever the depth.
    """
    if placement == "inplace":
        return ResNet(size, top, lambda stage, block: "shift_inplace")
    every = 2 if size.blocks[2] >= 23 else 1
    return ResNet(size, top, lambda stage, block: "shift" if block % every == 0 else "apart")


def stages(size: Size) -> dict[int, Stage]:
    """Return the stages of a residual network without temporal stride."""
    return {
        stage: Stage(EXPANSION * size.width * 2 ** (stage - FIRST_STAGE), space=2**stage) for stage in STAGE_NUMBERS
    }


MMACTION2: Substitutions = (
    (r"^stem\.", "conv1."),
    (r"^stages\.res(\d)\.(\d+)\.shortcut\.", r"layer<\1>.\2.downsample."),
    (r"^stages\.res(\d)\.(\d+)\.", r"layer<\1>.\2."),
    (r"\.norm\.", ".bn."),
)
TORCHVISION: Substitutions = (
    (r"^stem\.conv\.", "conv1."),
    (r"^stem\.norm\.", "bn1."),
    (r"^stages\.res(\d)\.(\d+)\.conv(\d)\.conv\.", r"layer<\1>.\2.conv\3."),
    (r"^stages\.res(\d)\.(\d+)\.conv(\d)\.norm\.", r"layer<\1>.\2.bn\3."),
    (r"^stages\.res(\d)\.(\d+)\.shortcut\.conv\.", r"layer<\1>.\2.downsample.0."),
    (r"^stages\.res(\d)\.(\d+)\.shortcut\.norm\.", r"layer<\1>.\2.downsample.1."),
)
NAMES = {"mmaction2": MMACTION2, "official": TORCHVISION, "resnet2d": TORCHVISION}
APACHE = "Apache-2.0 (mmaction2, official TPN); ImageNet weights of torchvision: BSD-3-Clause"

TSN_PUBLISHED = {"r50": Published(top1="72.4 % on Kinetics-400", source="mmaction2, 25 x 3 views")}
TSM_PUBLISHED = {
    "r50": Published(top1="73.0 % on Kinetics-400", source="mmaction2"),
    "r101": Published(top1="60.5 % on Something-Something V2", source="mmaction2"),
}

SIZES = {"r50": R50, "r101": R101, "toy": TOY}


def spec(build: Callable[..., Backbone], size: Size, **more: Any) -> BackboneSpec:
    """Return the entry of a 2D ResNet, or one that is inflated without strides in time."""
    common = {"sampling": "segments", "names": NAMES, "licence": APACHE}
    return BackboneSpec(build=partial(build, size), stages=stages(size), **{**common, **more})


SPECS: dict[str, BackboneSpec] = {
    **{
        f"tsn_{name}": spec(tsn, size, frames="apart", published=TSN_PUBLISHED.get(name, NOTHING))
        for name, size in SIZES.items()
    },
    **{
        f"tsm_{name}": spec(
            tsm,
            size,
            frames="shift",
            published=TSM_PUBLISHED.get(name, NOTHING),
            head_std=0.001,  # mmaction2's; with the pyramid 0.01, as its and the official TPN's
        )
        for name, size in SIZES.items()
    },
}
