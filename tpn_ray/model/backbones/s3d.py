"""S3D and S3D-G (Xie et al., ECCV 2018): Inception-v1 with separable convolutions. Runs anywhere, torch only.

s3d is torchvision's (torchvision.models.video.s3d); kylemin/S3D publishes weights of the same network. s3dg is the one
whose weights antoine77340/S3D_HowTo100M publishes: the paper's, except that its stem sees cubes of 2x2x2 pixels as 24
channels. Its batch norm has other constants than torchvision's, and its max-pools pad as few zeros as possible.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tpn_ray.model.backbones.inception import (
    FULL,
    LETTERS,
    TOY,
    Inception,
    InceptionKind,
    InceptionSize,
    spec,
    symmetric,
)
from tpn_ray.model.backbones.spec import KINETICS_MEAN, KINETICS_STD, BackboneSpec, Published, Substitutions
from tpn_ray.model.layers import ConvNorm3d

CUBE = 2  # pixels and frames along each edge of the cubes of which s3dg's stem makes channels


def ceil(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pad by kernel - stride, the odd zero at the end, and by what the last stride lacks (PyTorch's ceil_mode)."""
    total = max(kernel - stride, 0)
    return total // 2, total - total // 2 + (kernel - size - total) % stride


S3D = InceptionKind(separable=True, pads=symmetric, eps=1e-3, momentum=1e-3)
S3DG = InceptionKind(separable=True, pads=ceil, eps=1e-5, momentum=0.1, gated=True)


class CubeStem(ConvNorm3d):
    """2x4x4 convolution over cubes of 2x2x2 pixels; with their insides, it spans 4x8x8 pixels at a stride of 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(CUBE**3 * inputs, outputs, (2, 4, 4), eps=S3DG.eps, momentum=S3DG.momentum)
        self.conv.pixels_seen = CUBE**3  # type: ignore[assignment]  # for `recognizer.take_channels`

    def forward(self, clips: Float[Tensor, "n c t h w"]) -> Float[Tensor, "n k u i j"]:
        # The published code refuses odd numbers of frames or pixels; here they get a zero.
        rests = [-size % CUBE for size in clips.shape[2:]]
        clips = F.pad(clips, (0, rests[2], 0, rests[1], 0, rests[0]))
        n, c, t, h, w = (*clips.shape[:2], *(size // CUBE for size in clips.shape[2:]))
        cubes = clips.reshape(n, c, t, CUBE, h, CUBE, w, CUBE).permute(0, 3, 5, 7, 1, 2, 4, 6)
        # A kernel of even size has one output too many, which the published code drops after norm.
        return super().forward(cubes.reshape(n, CUBE**3 * c, t, h, w))[:, :, 1:, 1:, 1:]


def s3d(size: InceptionSize, top: int, inputs: int = 3) -> Inception:
    """Build S3D up to stage `top`, for clips of `inputs` channels."""
    return Inception(size, top, S3D, S3D.split(inputs, size.stem, 7, 2))


def s3dg(size: InceptionSize, top: int, inputs: int = 3) -> Inception:
    """Build S3D-G up to stage `top`, for clips of `inputs` channels."""
    return Inception(size, top, S3DG, CubeStem(inputs, size.stem))


def numbered(root: str) -> Substitutions:
    """Return the places of stem, convolutions, and mixed blocks in a sequence that counts the max-pools too."""
    blocks = [name for name in LETTERS if name[0] == "3"], LETTERS[2:7], LETTERS[7:]
    places = {"stem": 0, "conv2b": 2, "conv2c": 3}
    for first, names in zip((5, 8, 14), blocks, strict=True):
        places |= {f"stages.mixed{name[0]}.{name[1]}": first + i for i, name in enumerate(names)}
    return tuple((rf"^{name}\.".replace(".m", r"\.m"), f"{root}.{place}.") for name, place in places.items())


TORCHVISION: Substitutions = (
    *numbered("features"),
    (r"\.reduce(\d)\.conv\.", r".branch\1.0.0."),
    (r"\.reduce(\d)\.norm\.", r".branch\1.0.1."),
    (r"\.branch([12])\.(space|time)\.", r".branch\1.1.\2."),
    (r"\.branch3\.", ".branch3.1."),
    (r"\.space\.", ".0."),
    (r"\.time\.", ".1."),
    (r"\.conv\.", ".0."),
    (r"\.norm\.", ".1."),
    (r"^head\.linear\.", "classifier.1."),
)
KYLEMIN: Substitutions = (
    *numbered("base"),
    (r"\.reduce(\d)\.", r".branch\1.0."),
    (r"\.branch([12])\.(space|time)\.", r".branch\1.1.\2."),
    (r"\.branch0\.", ".branch0.0."),
    (r"\.branch3\.", ".branch3.1."),
    (r"\.space\.conv\.", ".conv_s."),
    (r"\.space\.norm\.", ".bn_s."),
    (r"\.time\.conv\.", ".conv_t."),
    (r"\.time\.norm\.", ".bn_t."),
    (r"\.norm\.", ".bn."),
    (r"^head\.linear\.", "fc.0."),
)
HOWTO100M: Substitutions = (
    (r"^stem\.", "conv1."),
    (r"^conv2", "conv_2"),
    (r"^gate2c\.linear\.", "gating.fc."),
    (r"^stages\.mixed(\d)\.(\w)\.", r"mixed_\1\2."),
    (r"\.gates\.(\d)\.linear\.", r".gating_b\1.fc."),
    (r"\.reduce(\d)\.", r".conv_b\1_a."),
    (r"\.branch0\.", ".conv_b0."),
    (r"\.branch(\d)\.", r".conv_b\1_b."),
    (r"\.time\.conv\.", ".conv2."),
    (r"\.time\.norm\.", ".bn2."),
    (r"\.(?:space\.)?conv\.", ".conv1."),
    (r"\.(?:space\.)?norm\.", ".bn1."),
)

LICENCE = "BSD-3-Clause (torchvision, Kinetics-400); MIT (kylemin/S3D, Kinetics-400)"
LICENCE_GATED = "Apache-2.0 (antoine77340/S3D_HowTo100M, HowTo100M)"

SPECS: dict[str, BackboneSpec] = {
    name: spec(
        s3d,
        size,
        names={"torchvision": TORCHVISION, "kylemin": KYLEMIN},
        licence=LICENCE,
        published=Published(frames=16, top1="68.4 % on Kinetics-400", source="torchvision"),
        mean=KINETICS_MEAN,
        std=KINETICS_STD,
        # Its pools drop what is left over, in time and space.
        least_frames=8,
        frames_multiple=8,
        least_px=17,
    )
    for name, size in {"s3d": FULL, "s3d_toy": TOY}.items()
} | {
    name: spec(
        s3dg,
        size,
        names={"howto100m": HOWTO100M},
        licence=LICENCE_GATED,
        published=Published(frames=64, top1="77.2 % on Kinetics-400", source="the TPN paper's S3D-G"),
        mean=(0.0, 0.0, 0.0),
        std=(255.0, 255.0, 255.0),
    )
    for name, size in {"s3dg": FULL, "s3dg_toy": TOY}.items()
}
