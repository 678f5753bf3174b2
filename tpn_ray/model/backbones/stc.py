"""3D ResNet and ResNeXt with spatio-temporal channel correlation (Diba et al., ECCV 2018). Runs anywhere, torch only.

Built from the paper, without code or weights of its authors to compare with. Only the trunks have public code, that of
kenshohara/3D-ResNets-PyTorch. What the paper's text leaves open is done as in squeeze-and-excitation, from which the
block descends: it stands at the end of every residual branch, and its inner layers are 16 times narrower.

One of the block's branches sees how every channel changes over time, so the number of frames is part of its weights'
shape. It is 16 here, one of the paper's; longer clips are averaged to it inside of the branch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tpn_ray.model.backbones.inception import max_pool, symmetric
from tpn_ray.model.backbones.resnet2d import R101, TOY, Size
from tpn_ray.model.backbones.resnet3d import SPACE_AND_TIME, Design, Place, ResNet3d, shortcut
from tpn_ray.model.backbones.spec import BackboneSpec, Published
from tpn_ray.model.layers import POINT, ConvNorm3d

FRAMES = 16
REDUCTION = 16
Clips = Float[Tensor, "n _ _ _ _"]


@dataclass(frozen=True)
class StcSize:
    """Depth and width."""

    trunk: Size
    """Blocks of the stages, and channels of the stem; res2 outputs four times as many, and each stage doubles them."""

    inner: int
    """Channels of the 3x3x3 convolutions, as a multiple of a ResNet's."""

    groups: int = 1
    """Groups of the 3x3x3 convolutions."""


SIZES = {
    "r101": StcSize(R101, inner=1),
    "x101": StcSize(R101, inner=2, groups=32),
    "toy": StcSize(TOY, inner=2, groups=4),
}


class Correlation(nn.Module):
    """Mean of the clips weighted by two branches, each with a weight per channel between 0 and 1.

    The paper's temporal branch (TCB) makes its weights of the means over time and space, and its spatial branch (SCB)
    of the means over space in each of `frames` frames.
    """

    def __init__(self, channels: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.temporal = weigher(channels, channels)
        self.spatial = weigher(frames * channels, channels)

    def forward(self, clips: Float[Tensor, "n c t h w"]) -> Float[Tensor, "n c t h w"]:
        means = clips.mean(dim=(3, 4))
        n, c, t = means.shape
        frames = means.reshape(n, c, self.frames, t // self.frames).mean(dim=3)
        weights: Tensor = (self.temporal(means.mean(dim=2)) + self.spatial(frames.flatten(1))) / 2
        return clips * weights[:, :, None, None, None]


class CorrelatedBottleneck(nn.Module):
    """1x1x1, 3x3x3, 1x1x1, correlation, and a shortcut; the 3x3x3 carries the stride."""

    def __init__(self, place: Place, size: StcSize) -> None:
        super().__init__()
        inner = size.inner * place.width
        self.conv1 = ConvNorm3d(place.inputs, inner, POINT)
        self.conv2 = ConvNorm3d(inner, inner, (3, 3, 3), stride=place.stride, groups=size.groups)
        self.conv3 = ConvNorm3d(inner, place.outputs, POINT, relu=False)
        self.correlation = Correlation(place.outputs, FRAMES // 2 ** (place.stage - 1))
        self.shortcut = shortcut(place)

    def forward(self, clips: Clips) -> Clips:
        inner = self.correlation(self.conv3(self.conv2(self.conv1(clips))))
        return F.relu(inner + (clips if self.shortcut is None else self.shortcut(clips)))


class Stc(ResNet3d):
    """A stem and the stages res2 to `top`. The max-pool halves time, and so does every stage after res2."""

    def __init__(self, size: StcSize, top: int) -> None:
        stem = ConvNorm3d(3, size.trunk.width, (7, 7, 7), stride=(1, 2, 2))
        super().__init__(design(size), top, stem, lambda place: CorrelatedBottleneck(place, size))

    def enter(self, clips: Float[Tensor, "n c t h w"]) -> Clips:
        """Apply the stem, and a pool that looks along time, too."""
        return max_pool(self.stem(clips), (3, 3), (2, 2), symmetric)


def design(size: StcSize) -> Design:
    """Return the numbers of the trunk."""
    return Design(size=size.trunk, strides=SPACE_AND_TIME, pool=2)


def weigher(inputs: int, outputs: int) -> nn.Sequential:
    """Build two linear layers with a narrow middle, and a sigmoid."""
    middle = max(1, inputs // REDUCTION)
    return nn.Sequential(nn.Linear(inputs, middle), nn.ReLU(), nn.Linear(middle, outputs), nn.Sigmoid())


PUBLISHED = {
    "x101": Published(frames=32, crop_px=112, top1="68.7 % on Kinetics-400", source="the TPN paper's STC-X101")
}
SPECS: dict[str, BackboneSpec] = {
    f"stc_{name}": BackboneSpec(
        build=partial(Stc, size),
        stages=design(size).stages(),
        head_std=None,
        frames="convolve",
        sampling="clip",
        licence="no published weights",
        published=PUBLISHED.get(name, Published(frames=32, crop_px=112)),
        least_frames=FRAMES,
        frames_multiple=FRAMES,
    )
    for name, size in SIZES.items()
}
