"""SlowFast: a slow path of few frames and many channels, a fast path of all frames and few channels, and lateral
connections from fast to slow (Feichtenhofer et al., "SlowFast Networks for Video Recognition"; mmaction2's
ResNet3dSlowFast). Runs anywhere, torch only.

4x16 and 8x8 say how many frames the slow path sees of the published clip, and at which stride. That clip has 32 frames
of stride 2, all of which the fast path sees. The fast path has an eighth of the slow path's channels. Neither path
strides in time.

The output of a stage has the slow path's frames. The fast path's are averaged to these, and its channels come first, as
in the published head: the mean of the highest stage is what that head classifies. Lateral connections enter the next
stage and are no part of a stage's output.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tpn_ray.model.backbones.i3d import ATTENTION, NonLocal, nowhere, second_of_two
from tpn_ray.model.backbones.resnet2d import APACHE, FIRST_STAGE, R50, R101, TOY, Size
from tpn_ray.model.backbones.resnet3d import Design, Place, ResNet3d, bottleneck
from tpn_ray.model.backbones.spec import Backbone, BackboneSpec, Published, Stage, Substitutions
from tpn_ray.model.layers import ConvNorm3d

WIDTH_RATIO = 8
"""Channels of the slow path per channel of the fast one."""


@dataclass(frozen=True, kw_only=True)
class TwoPaths:
    """The numbers of a SlowFast."""

    slow: Size
    """Blocks and width of the slow path."""

    fast: Size
    """Blocks of the fast path, and eight times its width."""

    rate: int
    """Frames of the fast path per frame of the slow one."""

    kernel: int
    """Frames that a lateral connection looks at."""

    lateral_norm: bool = False
    """Whether lateral connections have a batch norm and ReLU."""

    attends: bool = False
    """Whether the slow path has non-local blocks, at the places of PySlowFast's NLN configs and with their
    dot products. Pooling after the embedding, not before it, is mmaction2's."""

    def slow_design(self) -> Design:
        """Return the numbers of the slow path."""
        # Lateral connections double the fast path's channels, which a stage multiplies by the expansion.
        stem = 2 * self.fast_design().size.width
        fused = {stage: stem * (4 * 2 ** (stage - 3) if stage > FIRST_STAGE else 1) for stage in (2, 3, 4, 5)}
        return Design(size=self.slow, fused=fused)

    def fast_design(self) -> Design:
        """Return the numbers of the fast path."""
        return Design(size=replace(self.fast, width=self.fast.width // WIDTH_RATIO))

    def stages(self) -> dict[int, Stage]:
        """Return the channels and strides of the stages, both paths together."""
        slow, fast = self.slow_design().stages(), self.fast_design().stages()
        return {
            number: replace(stage, channels=fast[number].channels + stage.channels, time=self.rate)
            for number, stage in slow.items()
        }


class SlowFast(Backbone):
    """Both paths and their lateral connections, up to stage res`top`. Like PySlowFast's, residual branches start at
    zero."""

    zero_residual = True

    def __init__(self, paths: TwoPaths, top: int) -> None:
        super().__init__()
        self.rate = paths.rate
        attends = second_of_two if paths.attends else nowhere

        def slow_block(place: Place) -> nn.Module:
            attention = NonLocal(place.outputs, "dot_product") if attends(place) else None
            return bottleneck(place, convolve_time=place.stage > 3, attention=attention)

        slow, fast = paths.slow_design(), paths.fast_design()
        slow_stem = ConvNorm3d(3, slow.size.width, (1, 7, 7), stride=(1, 2, 2))
        fast_stem = ConvNorm3d(3, fast.size.width, (5, 7, 7), stride=(1, 2, 2))
        self.slow = ResNet3d(slow, top, slow_stem, slow_block)
        self.fast = ResNet3d(fast, top, fast_stem, lambda place: bottleneck(place, convolve_time=True))
        self.channels = {stage: self.fast.channels[stage] + slow for stage, slow in self.slow.channels.items()}
        self.laterals = nn.ModuleDict({"stem": lateral(paths, fast.size.width)})
        for stage in range(FIRST_STAGE, top):
            self.laterals[f"res{stage}"] = lateral(paths, self.fast.channels[stage])

    def forward(self, clips: Float[Tensor, "n c t h w"]) -> dict[int, Float[Tensor, "n _ _ _ _"]]:
        """Return the output of every stage by its number, both paths together."""
        return {stage: together(slow, fast) for stage, (slow, fast) in self.paths(clips).items()}

    def paths(
        self, clips: Float[Tensor, "n c t h w"]
    ) -> dict[int, tuple[Float[Tensor, "n _ _ _ _"], Float[Tensor, "n _ t _ _"]]]:
        """Return the outputs of every stage by its number, those of the slow path and of the fast path apart."""
        slow, fast = self.slow.enter(clips[:, :, :: self.rate]), self.fast.enter(clips)
        below, outputs = "stem", {}
        for stage in self.channels:
            fused = torch.cat((slow, self.laterals[below](fast)), dim=1)
            slow, fast = self.slow.advance(stage, fused), self.fast.advance(stage, fast)
            below, outputs[stage] = f"res{stage}", (slow, fast)
        return outputs


def lateral(paths: TwoPaths, channels: int) -> ConvNorm3d:
    """Build a lateral connection, which brings the fast path to the slow path's frames and doubles its channels."""
    kernel, stride = (paths.kernel, 1, 1), (paths.rate, 1, 1)
    normed = paths.lateral_norm
    return ConvNorm3d(channels, 2 * channels, kernel, stride=stride, eps=1e-5 if normed else None, relu=normed)


def together(slow: Float[Tensor, "n c t h w"], fast: Float[Tensor, "n k s h w"]) -> Float[Tensor, "n both t h w"]:
    """Average the fast path's frames to the slow path's, and concatenate the channels, the fast path's first."""
    n, k, _, h, w = fast.shape
    return torch.cat((fast.reshape(n, k, slow.shape[2], -1, h, w).mean(dim=3), slow), dim=1)


NAMES: Substitutions = (
    (r"\.branch\.", "."),
    *ATTENTION,
    (r"^laterals\.stem\.", "slow_path.conv1_lateral."),
    (r"^laterals\.res(\d)\.", r"slow_path.layer<\1>_lateral."),
    (r"^(slow|fast)\.stem\.", r"\1_path.conv1."),
    (r"^(slow|fast)\.stages\.res(\d)\.(\d+)\.shortcut\.", r"\1_path.layer<\2>.\3.downsample."),
    (r"^(slow|fast)\.stages\.res(\d)\.(\d+)\.", r"\1_path.layer<\2>.\3."),
    (r"\.norm\.", ".bn."),
)


def spec(paths: TwoPaths, top1: str = "") -> BackboneSpec:
    """Return the entry of a SlowFast."""
    return BackboneSpec(
        build=partial(SlowFast, paths),
        stages=paths.stages(),
        frames="convolve",
        sampling="clip",
        names={"mmaction2": NAMES},
        licence=APACHE,
        published=Published(frames=32, stride_frames=2, top1=top1, source="mmaction2"),
        least_frames=paths.rate,
        frames_multiple=paths.rate,
        least_px=32 if paths.attends else 1,  # 2 pixels of res4, for the pool
    )


R50_4X16 = TwoPaths(slow=R50, fast=R50, rate=8, kernel=5)
R50_8X8 = TwoPaths(slow=R50, fast=R50, rate=4, kernel=7)
# oneDNN (torch 2.13, CPU) corrupts memory in the backward of a strided 1x1 convolution of fewer than 8 channels, which
# the fast path would have at half this width.
WIDE_TOY = replace(TOY, width=16)
SPECS: dict[str, BackboneSpec] = {
    "slowfast_r50_4x16": spec(R50_4X16, "75.5 % on Kinetics-400"),
    "slowfast_r50_8x8": spec(R50_8X8, "76.2 % on Kinetics-400"),
    "slowfast_r50_8x8_lateral_norm": spec(replace(R50_8X8, lateral_norm=True)),
    "slowfast_r50_4x16_nl": spec(replace(R50_4X16, attends=True)),
    "slowfast_r50_8x8_nl": spec(replace(R50_8X8, kernel=5, attends=True)),
    "slowfast_r101_r50_4x16": spec(replace(R50_4X16, slow=R101), "76.3 % on Kinetics-400"),
    "slowfast_r101_8x8": spec(replace(R50_8X8, slow=R101, fast=R101), "76.3 % on Kinetics-400"),
    "slowfast_toy": spec(TwoPaths(slow=WIDE_TOY, fast=WIDE_TOY, rate=4, kernel=5)),
}
