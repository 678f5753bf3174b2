"""Channel-separated networks: ResNets whose 3x3x3 convolutions are depthwise (Tran et al., "Video Classification with
Channel-Separated Convolutional Networks"; mmaction2's ResNet3dCSN). Runs anywhere, torch only.

The interaction-reduced kind (ir) has just the depthwise convolution in the middle of a block; the interaction-preserved
kind (ip) a 1x1x1 before it, so that channels still meet as in a ResNet. Time is strided in res3, res4, and res5.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

from torch import nn

from tpn_ray.model.backbones.resnet2d import R50, R101, TOY, Size
from tpn_ray.model.backbones.resnet3d import (
    BARE,
    NAMES_3D,
    SPACE_AND_TIME,
    Design,
    Place,
    ResidualBlock,
    ResNet3d,
    shortcut,
)
from tpn_ray.model.backbones.spec import KINETICS_MEAN, KINETICS_STD, BackboneSpec, Published
from tpn_ray.model.layers import POINT, ConvNorm3d

Interaction = Literal["ir", "ip"]
EPS = 1e-3
R152 = Size(blocks=(3, 8, 36, 3), width=64)


def design(size: Size) -> Design:
    """Return the numbers of a CSN."""
    return Design(size=size, strides=SPACE_AND_TIME)


def csn(size: Size, top: int, interaction: Interaction) -> ResNet3d:
    """Build a CSN up to stage res`top`."""

    def block(place: Place) -> ResidualBlock:
        width = place.width
        middle = ConvNorm3d(width, width, (3, 3, 3), stride=place.stride, groups=width, eps=EPS)
        preserving = [ConvNorm3d(width, width, POINT, eps=EPS, relu=False)] if interaction == "ip" else []
        branch: dict[str, nn.Module] = {
            "conv1": ConvNorm3d(place.inputs, width, POINT, eps=EPS),
            "conv2": nn.Sequential(*preserving, middle),
            "conv3": ConvNorm3d(width, place.outputs, POINT, eps=EPS, relu=False),
        }
        return ResidualBlock(branch, shortcut(place, EPS))

    return ResNet3d(design(size), top, ConvNorm3d(3, size.width, (3, 7, 7), stride=(1, 2, 2), eps=EPS), block)


def spec(size: Size, interaction: Interaction, published: Published) -> BackboneSpec:
    """Return the entry of a CSN."""
    return BackboneSpec(
        build=partial(csn, size, interaction=interaction),
        stages=design(size).stages(),
        frames="convolve",
        sampling="clip",
        names={"mmaction2": NAMES_3D, BARE: NAMES_3D},
        licence="Apache-2.0 (mmaction2)",
        published=published,
        mean=KINETICS_MEAN,
        std=KINETICS_STD,
    )


SIZES = {"r50": R50, "r101": R101, "r152": R152, "toy": TOY}
KINDS: tuple[Interaction, ...] = ("ir", "ip")
CLIP = Published(frames=32, stride_frames=2)
PUBLISHED = {
    "ircsn_r152": replace(CLIP, top1="82.8 % on Kinetics-400", source="mmaction2, from IG-65M"),
    "ipcsn_r101": replace(CLIP, top1="76.7 % on Kinetics-400", source="the TPN paper's CSN-101"),
    "ipcsn_r152": replace(CLIP, top1="77.8 % on Kinetics-400", source="the TPN paper's CSN-152"),
}
SPECS: dict[str, BackboneSpec] = {
    f"{kind}csn_{name}": spec(size, kind, PUBLISHED.get(f"{kind}csn_{name}", CLIP))
    for kind in KINDS
    for name, size in SIZES.items()
}
