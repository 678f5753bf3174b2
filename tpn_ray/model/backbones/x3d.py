"""X3D: thin residual networks of depthwise 3x3x3 convolutions, with squeeze-and-excitation in every second block
(Feichtenhofer, "X3D: Expanding Architectures for Efficient Video Recognition"; mmaction2's X3D). Runs anywhere, torch
only.

Blocks have 2.25 times as many channels inside as outside. No stage strides in time. The output of res5 includes the
1x1x1 convolution that the published network ends in. S and M are the same network, published for different clips: 13
frames of stride 6 at 160 pixels, and 16 frames of stride 5 at 224.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tpn_ray.model.backbones.resnet2d import Size
from tpn_ray.model.backbones.resnet3d import NAMES_3D, Design, Place, ResidualBlock, ResNet3d, shortcut
from tpn_ray.model.backbones.spec import NOTHING, BackboneSpec, Published, Stage, Substitutions, stage_in_name
from tpn_ray.model.heads import ClassificationHead
from tpn_ray.model.layers import POINT, ConvNorm3d, conv3d, named

TOP = 5
HIDDEN = 2048
"""Width of the layer before the published classifier."""

M = Size(blocks=(3, 5, 11, 7), width=24)
L = Size(blocks=(5, 10, 25, 15), width=24)
TOY = Size(blocks=(1, 1, 1, 1), width=8)


class SqueezeExcite(nn.Module):
    """Scales every channel by what two layers make of the channels' means over the clip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = squeezed(channels)
        self.reduce = conv3d(channels, inner, POINT, bias=True)
        self.expand = conv3d(inner, channels, POINT, bias=True)

    def forward(self, clips: Float[Tensor, "n c t h w"]) -> Float[Tensor, "n c t h w"]:
        means = clips.mean(dim=(2, 3, 4))[:, :, None, None]
        scale: Tensor = self.expand(F.relu(self.reduce(means))).sigmoid()
        return clips * scale[:, :, None]


def squeezed(channels: int) -> int:
    """Return a sixteenth, rounded to a multiple of 8 that is at least 8 and at most a tenth below it."""
    exact = channels / 16
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded


class X3D(ResNet3d):
    """The stem and the stages res2 to `top`."""

    def __init__(self, size: Size, top: int) -> None:
        stem = named(
            space=ConvNorm3d(3, size.width, (1, 3, 3), stride=(1, 2, 2), eps=None, relu=False),
            time=ConvNorm3d(size.width, size.width, (5, 1, 1), groups=size.width),
        )
        super().__init__(design(size), top, stem, block)
        self.last: ConvNorm3d | None = None
        if top == TOP:
            channels = self.channels[TOP]
            self.channels[TOP] = widened(channels)
            self.last = ConvNorm3d(channels, widened(channels), POINT)

    def advance(self, stage: int, x: Float[Tensor, "n c t h w"]) -> Float[Tensor, "n k s i j"]:
        """Apply a stage to the output of the previous one."""
        y = super().advance(stage, x)
        return y if stage < TOP or self.last is None else self.last(y)


def block(place: Place) -> ResidualBlock:
    """Build a block; the depthwise convolution carries the stride."""
    inner = widened(place.width)
    branch: dict[str, nn.Module] = {
        "conv1": ConvNorm3d(place.inputs, inner, POINT),
        "conv2": ConvNorm3d(inner, inner, (3, 3, 3), stride=place.stride, groups=inner, relu=False),
    }
    if place.block % 2 == 0:
        branch["squeeze"] = SqueezeExcite(inner)
    branch["swish"] = nn.SiLU()
    branch["conv3"] = ConvNorm3d(inner, place.outputs, POINT, relu=False)
    return ResidualBlock(branch, shortcut(place))


def widened(channels: int) -> int:
    """Return the channels inside a block of that many channels, and after the last stage."""
    return int(2.25 * channels)


def design(size: Size) -> Design:
    """Return the numbers of an X3D, without the convolution at the end."""
    return Design(size=size, expansion=1, strides=((1, 2, 2),) * 4, pool=None, zero_residual=True)


def stages(size: Size) -> dict[int, Stage]:
    """Return the channels and strides of the stages."""
    table = design(size).stages()
    return table | {TOP: replace(table[TOP], channels=widened(table[TOP].channels))}


NAMES: Substitutions = (
    (r"^stem\.space\.", "conv1_s."),
    (r"^stem\.time\.", "conv1_t."),
    (r"\.squeeze\.reduce\.", ".se_module.fc1."),
    (r"\.squeeze\.expand\.", ".se_module.fc2."),
    (r"^last\.", "conv5."),
    *NAMES_3D,
    (r"^head\.hidden\.", "cls_head.fc1."),
    (r"^head\.linear\.", "cls_head.fc2."),
)


def spec(size: Size, hidden: int, published: Published = NOTHING) -> BackboneSpec:
    """Return the entry of an X3D."""
    return BackboneSpec(
        build=partial(X3D, size),
        stages=stages(size),
        stage_of=lambda name: TOP if name.startswith("last.") else stage_in_name(name),
        head=partial(ClassificationHead, hidden=hidden),
        frames="convolve",
        sampling="clip",
        names={"mmaction2": NAMES},
        licence="Apache-2.0 (mmaction2, PySlowFast)",
        published=published,
        mean=(114.75, 114.75, 114.75),
        std=(57.38, 57.38, 57.38),
    )


SPECS: dict[str, BackboneSpec] = {
    "x3d_s": spec(
        M,
        HIDDEN,
        Published(frames=13, stride_frames=6, crop_px=160, top1="73.3 % on Kinetics-400", source="mmaction2"),
    ),
    "x3d_m": spec(M, HIDDEN, Published(frames=16, stride_frames=5, top1="75.5 % on Kinetics-400", source="mmaction2")),
    "x3d_l": spec(
        L,
        HIDDEN,
        Published(frames=16, stride_frames=5, crop_px=312, top1="77.5 % on Kinetics-400", source="PySlowFast"),
    ),
    "x3d_toy": spec(TOY, 64),
}
