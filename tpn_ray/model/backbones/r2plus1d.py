"""R(2+1)D: residual networks whose convolutions are one over space, then one over time (Tran et al., "A Closer Look at
Spatiotemporal Convolutions for Action Recognition"). Runs anywhere, torch only.

Between the two are as many channels as give the pair the weights of the 3D convolution it replaces. The two published
kinds differ:

  * r2plus1d_r34 is mmaction2's ResNet2Plus1d. A pool follows the stem, shortcuts are such pairs as well, and the norms
    after pairs have another epsilon than those inside.
  * r2plus1d_18 is torchvision's. It has no pool, so its stages have half the stride: res5 has 16. A block's second pair
    has as many channels inside as its first, and shortcuts are plain convolutions.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from tpn_ray.model.backbones.resnet2d import TOY, Size
from tpn_ray.model.backbones.resnet3d import NAMES_3D, SPACE_AND_TIME, Design, Place, ResidualBlock, ResNet3d, shortcut
from tpn_ray.model.backbones.spec import KINETICS_MEAN, KINETICS_STD, NOTHING, BackboneSpec, Published, Substitutions
from tpn_ray.model.layers import POINT, ConvNorm3d, Triple, named

R18 = Size(blocks=(2, 2, 2, 2), width=64)
R34 = Size(blocks=(3, 4, 6, 3), width=64)
EPS = 1e-3
"""mmaction2's epsilon of the norms after pairs."""
TORCHVISION_STEM = 45
"""Channels inside torchvision's stem, which the paper's formula does not give."""


def pair(
    inputs: int,
    outputs: int,
    kernel: Triple,
    *,
    stride: Triple = POINT,
    inside: int | None = None,
    eps: float = 1e-5,
    relu: bool = True,
) -> nn.Module:
    """Build a convolution over space and one over time, each with batch norm and ReLU, of which the last may be left
    out; `inside` is the number of channels between, by default the paper's."""
    between = channels_inside(inputs, outputs, kernel[1]) if inside is None else inside
    return named(
        space=ConvNorm3d(inputs, between, (1, *kernel[1:]), stride=(1, *stride[1:])),
        time=ConvNorm3d(between, outputs, (kernel[0], 1, 1), stride=(stride[0], 1, 1), eps=eps, relu=relu),
    )


def channels_inside(inputs: int, outputs: int, pixels: int) -> int:
    """Return the channels for which a pair has the weights of a convolution of 3 x `pixels` x `pixels` (section 3.5).

    The kernel counts as 3 frames even in shortcuts, where it is 1, as in mmaction2.
    """
    area = pixels**2
    return 3 * area * inputs * outputs // (area * inputs + 3 * outputs)


def design(size: Size, pool: int | None) -> Design:
    """Return the numbers of an R(2+1)D."""
    return Design(size=size, expansion=1, strides=SPACE_AND_TIME, pool=pool)


def mmaction2(size: Size, top: int) -> ResNet3d:
    """Build mmaction2's R(2+1)D up to stage res`top`."""

    def block(place: Place) -> ResidualBlock:
        inputs, outputs, stride = place.inputs, place.outputs, place.stride
        branch: dict[str, nn.Module] = {
            "conv1": pair(inputs, outputs, (3, 3, 3), stride=stride, eps=EPS),
            "conv2": pair(outputs, outputs, (3, 3, 3), eps=EPS, relu=False),
        }
        if stride == POINT and inputs == outputs:
            return ResidualBlock(branch, None)
        return ResidualBlock(branch, pair(inputs, outputs, POINT, stride=stride, eps=EPS, relu=False))

    stem = pair(3, size.width, (3, 7, 7), stride=(1, 2, 2), eps=EPS)
    return ResNet3d(design(size, pool=1), top, stem, block)


def torchvision(size: Size, top: int) -> ResNet3d:
    """Build torchvision's R(2+1)D up to stage res`top`."""

    def block(place: Place) -> ResidualBlock:
        inside = channels_inside(place.inputs, place.outputs, 3)
        branch: dict[str, nn.Module] = {
            "conv1": pair(place.inputs, place.outputs, (3, 3, 3), stride=place.stride, inside=inside),
            "conv2": pair(place.outputs, place.outputs, (3, 3, 3), inside=inside, relu=False),
        }
        return ResidualBlock(branch, shortcut(place))

    stem = pair(3, size.width, (3, 7, 7), stride=(1, 2, 2), inside=TORCHVISION_STEM)
    return ResNet3d(design(size, pool=None), top, stem, block)


MMACTION2: Substitutions = (
    (r"\.space\.conv\.", ".conv.conv_s."),
    (r"\.space\.norm\.", ".conv.bn_s."),
    (r"\.time\.conv\.", ".conv.conv_t."),
    (r"\.time\.norm\.", ".bn."),
    *NAMES_3D,
)
TORCHVISION: Substitutions = (
    (r"^stem\.space\.conv\.", "stem.0."),
    (r"^stem\.space\.norm\.", "stem.1."),
    (r"^stem\.time\.conv\.", "stem.3."),
    (r"^stem\.time\.norm\.", "stem.4."),
    (r"^stages\.res(\d)\.", r"layer<\1>."),
    (r"\.branch\.conv(\d)\.space\.conv\.", r".conv\1.0.0."),
    (r"\.branch\.conv(\d)\.space\.norm\.", r".conv\1.0.1."),
    (r"\.branch\.conv(\d)\.time\.conv\.", r".conv\1.0.3."),
    (r"\.branch\.conv(\d)\.time\.norm\.", r".conv\1.1."),
    (r"\.shortcut\.conv\.", ".downsample.0."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"^head\.linear\.", "fc."),
)


def mmaction2_spec(size: Size, published: Published = NOTHING) -> BackboneSpec:
    """Return the entry of mmaction2's kind."""
    return BackboneSpec(
        build=partial(mmaction2, size),
        stages=design(size, pool=1).stages(),
        frames="convolve",
        sampling="clip",
        names={"mmaction2": MMACTION2},
        licence="Apache-2.0 (mmaction2)",
        published=published,
    )


SPECS: dict[str, BackboneSpec] = {
    "r2plus1d_r34": mmaction2_spec(
        R34, Published(frames=32, stride_frames=2, top1="74.6 % on Kinetics-400", source="mmaction2")
    ),
    "r2plus1d_18": BackboneSpec(
        build=partial(torchvision, R18),
        stages=design(R18, pool=None).stages(),
        frames="convolve",
        sampling="clip",
        names={"torchvision": TORCHVISION},
        licence="BSD-3-Clause (torchvision)",
        published=Published(frames=16, crop_px=112, top1="67.5 % on Kinetics-400", source="torchvision"),
        mean=KINETICS_MEAN,
        std=KINETICS_STD,
    ),
    "r2plus1d_toy": mmaction2_spec(TOY),
}
