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
from tpn_ray.model.backbones.spec import Backbone, BackboneSpec, Published, Stage
from tpn_ray.model.layers import POINT, ConvNorm3d

FRAMES = 16
REDUCTION = 16
FIRST_STAGE = 2
Clips = Float[Tensor, "n _ _ _ _"]


@dataclass(frozen=True)
class StcSize:
    """Depth and width."""

    blocks: tuple[int, int, int, int]
    """Number of blocks in res2, res3, res4, res5."""

    stem: int
    """Channels of the stem; res2 outputs four times as many, and each stage doubles them."""

    inner: int
    """Channels of the 3x3x3 convolutions of res2; each stage doubles them."""

    groups: int = 1
    """Groups of the 3x3x3 convolutions."""


R101 = StcSize((3, 4, 23, 3), stem=64, inner=64)
X101 = StcSize((3, 4, 23, 3), stem=64, inner=128, groups=32)
TOY = StcSize((1, 1, 1, 1), stem=8, inner=16, groups=4)


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

    def __init__(self, inputs: int, inner: int, outputs: int, *, stride: int, groups: int, frames: int) -> None:
        super().__init__()
        strides = (stride,) * 3
        self.conv1 = ConvNorm3d(inputs, inner, POINT)
        self.conv2 = ConvNorm3d(inner, inner, (3, 3, 3), stride=strides, groups=groups)
        self.conv3 = ConvNorm3d(inner, outputs, POINT, relu=False)
        self.correlation = Correlation(outputs, frames)
        self.shortcut: ConvNorm3d | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = ConvNorm3d(inputs, outputs, POINT, stride=strides, relu=False)

    def forward(self, clips: Clips) -> Clips:
        inner = self.correlation(self.conv3(self.conv2(self.conv1(clips))))
        return F.relu(inner + (clips if self.shortcut is None else self.shortcut(clips)))


class Stc(Backbone):
    """A stem and the stages res2 to `top`. The max-pool halves time, and so does every stage after res2."""

    def __init__(self, size: StcSize, top: int) -> None:
        super().__init__()
        self.stem = ConvNorm3d(3, size.stem, (7, 7, 7), stride=(1, 2, 2))
        self.channels: dict[int, int] = {}
        self.stages = nn.ModuleDict()
        inputs = size.stem
        for stage in range(FIRST_STAGE, top + 1):
            scale = 2 ** (stage - FIRST_STAGE)
            outputs, blocks = 4 * size.stem * scale, []
            for block in range(size.blocks[stage - FIRST_STAGE]):
                blocks.append(
                    CorrelatedBottleneck(
                        inputs,
                        size.inner * scale,
                        outputs,
                        stride=2 if block == 0 and stage > FIRST_STAGE else 1,
                        groups=size.groups,
                        frames=FRAMES // 2 // scale,
                    )
                )
                inputs = outputs
            self.stages[f"res{stage}"] = nn.Sequential(*blocks)
            self.channels[stage] = outputs

    def forward(self, clips: Float[Tensor, "n c t h w"]) -> dict[int, Clips]:
        """Return the output of every stage by its number."""
        x = max_pool(self.stem(clips), (3, 3), (2, 2), symmetric)
        levels = {}
        for stage in self.channels:
            x = levels[stage] = self.stages[f"res{stage}"](x)
        return levels


def weigher(inputs: int, outputs: int) -> nn.Sequential:
    """Build two linear layers with a narrow middle, and a sigmoid."""
    middle = max(1, inputs // REDUCTION)
    return nn.Sequential(nn.Linear(inputs, middle), nn.ReLU(), nn.Linear(middle, outputs), nn.Sigmoid())


def stages(size: StcSize) -> dict[int, Stage]:
    """Return the stages; the max-pool and every stage after res2 halve time."""
    return {
        stage: Stage(size.stem * 2**stage, space=2**stage, time=2 ** (stage - 1))
        for stage in range(FIRST_STAGE, FIRST_STAGE + len(size.blocks))
    }


PUBLISHED = {
    "x101": Published(frames=32, crop_px=112, top1="68.7 % on Kinetics-400", source="the TPN paper's STC-X101")
}
SPECS: dict[str, BackboneSpec] = {
    f"stc_{name}": BackboneSpec(
        build=partial(Stc, size),
        stages=stages(size),
        head_std=None,
        frames="convolve",
        sampling="clip",
        licence="no published weights",
        published=PUBLISHED.get(name, Published(frames=32, crop_px=112)),
        least_frames=FRAMES,
        frames_multiple=FRAMES,
    )
    for name, size in {"r101": R101, "x101": X101, "toy": TOY}.items()
}
