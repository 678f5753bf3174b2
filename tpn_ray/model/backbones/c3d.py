"""C3D: eight 3x3x3 convolutions, five max-pools, and two fully connected layers (Tran et al., "Learning Spatiotemporal
Features with 3D Convolutional Networks"; mmaction2's C3D). Runs anywhere, torch only.

A stage is named by its stride in height and width, as in a ResNet: 2, 3, and 4 are the last convolutions before the
third, fourth, and fifth pool, and 5 is the fifth pool. These take clips of any length and size. Stage 6, the second
fully connected layer, takes only clips of the published shape.

Unlike the published ones, pools include a shorter last window, and the fifth is padded only where its input's size is
odd. So a stage always halves what the one below has, rounded up, as a pyramid's convolutions do. At the published shape
there is no difference. The published weights were trained on pixels less (104, 117, 128), not divided.
"""

from __future__ import annotations

from functools import partial

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tpn_ray.errors import ConfigError
from tpn_ray.model.backbones.resnet3d import BARE
from tpn_ray.model.backbones.spec import STEM, Backbone, BackboneSpec, Published, Stage, Substitutions
from tpn_ray.model.frames import max_pool_time, per_frame
from tpn_ray.model.heads import initialise
from tpn_ray.model.layers import ConvNorm3d

FRAMES = 16
PUBLISHED_PX = 112
TOY_PX = 48
CONVOLUTIONS: tuple[tuple[tuple[str, int], ...], ...] = (
    (("1a", 1),),
    (("2a", 2),),
    (("3a", 4), ("3b", 4)),
    (("4a", 8), ("4b", 8)),
    (("5a", 8), ("5b", 8)),
)
"""Name of every convolution, and its channels per channel of the first, by the pool that follows."""
FULL = 64
"""Outputs of the fully connected layers per channel of the first convolution."""


class C3D(Backbone):
    """The network up to stage `top`, with `width` channels in the first convolution."""

    def __init__(self, width: int, px: int, top: int) -> None:
        """Build the stages; `px` is the height and width of clips that the fully connected layers take."""
        super().__init__()
        self.px = px
        self.channels = {number: stage.channels for number, stage in stages(width, px).items() if number <= top}
        self.convolutions = nn.ModuleList()
        inputs = 3
        for group in CONVOLUTIONS[: min(top, 4) + 1]:
            layers = nn.ModuleDict()
            for name, factor in group:
                layers[name] = ConvNorm3d(inputs, factor * width, (3, 3, 3), bias=True, eps=None)
                inputs = factor * width
            self.convolutions.append(layers)
        self.full = nn.ModuleDict()
        if top == 6:
            pooled = -(-px // 32)
            self.full["6"] = nn.Linear(inputs * pooled**2, FULL * width)
            self.full["7"] = nn.Linear(FULL * width, FULL * width)
        self.dropout = nn.Dropout(0.5)

    def initialise(self) -> None:
        """Draw fresh weights; the fully connected layers are small, as in mmaction2."""
        super().initialise()
        initialise(self.full, std=0.005)

    def forward(self, clips: Float[Tensor, "n c t h w"]) -> dict[int, Float[Tensor, "n _ _ _ _"]]:
        """Return the output of every stage by its number; ConfigError for clips that stage 6 cannot take."""
        if self.full and clips.shape[2:] != (FRAMES, self.px, self.px):
            raise ConfigError(
                f"clips of shape {tuple(clips.shape)}: the fully connected layers of C3D need {FRAMES} frames of "
                f"{self.px} x {self.px} pixels"
            )
        outputs, x = {}, clips
        for index, layers in enumerate(self.convolutions):
            if index:
                x = halve(x, time=index > 1)
            for layer in layers.values():  # type: ignore[operator]
                x = layer(x)
            outputs[index] = x
        if 5 in self.channels:
            outputs[5] = x = max_pool_time(per_frame(fifth_pool, x), 2)
        if self.full:
            hidden = self.dropout(F.relu(self.full["6"](x.flatten(1))))
            outputs[6] = F.relu(self.full["7"](hidden))[:, :, None, None, None]
        return {number: outputs[number] for number in self.channels}


def halve(clips: Float[Tensor, "n c t h w"], *, time: bool) -> Float[Tensor, "n c s i j"]:
    """Max-pool 2x2 pixels, and pairs of frames if `time`."""
    return max_pool_time(per_frame(lambda frames: F.max_pool2d(frames, 2, ceil_mode=True), clips), 2 if time else 1)


def fifth_pool(frames: Float[Tensor, "nt c h w"]) -> Float[Tensor, "nt c i j"]:
    """Max-pool 2x2 pixels, of which the first window of an odd row or column holds one."""
    _, _, h, w = frames.shape
    return F.max_pool2d(frames, 2, padding=(h % 2, w % 2))


def stages(width: int, px: int) -> dict[int, Stage]:
    """Return the channels and strides of the stages."""
    return {
        2: Stage(4 * width, space=4, time=2),
        3: Stage(8 * width, space=8, time=4),
        4: Stage(8 * width, space=16, time=8),
        5: Stage(8 * width, space=32, time=16),
        6: Stage(FULL * width, space=px, time=FRAMES),
    }


NAMES: Substitutions = (
    (r"^convolutions\.\d\.", "conv"),
    (r"^full\.", "fc"),
)


def stage_of(name: str) -> int:
    """Return the stage of a parameter: that of its group of convolutions, of which the first is the stem."""
    part, number, _ = name.split(".", 2)
    if part == "full":
        return 6
    return int(number) + 1 if number != "0" else STEM


def spec(width: int, px: int) -> BackboneSpec:
    """Return the entry of a C3D."""
    return BackboneSpec(
        build=partial(C3D, width, px),
        stages=stages(width, px),
        stage_of=stage_of,
        frames="convolve",
        sampling="clip",
        names={"mmaction2": NAMES, BARE: NAMES},
        licence="Apache-2.0 (mmaction2)",
        published=Published(
            frames=16, crop_px=PUBLISHED_PX, top1="82.9 % on UCF-101", source="mmaction2, from Sports-1M"
        ),
        mean=(104.0, 117.0, 128.0),
        std=(1.0, 1.0, 1.0),
    )


SPECS: dict[str, BackboneSpec] = {"c3d": spec(64, PUBLISHED_PX), "c3d_toy": spec(8, TOY_PX)}
