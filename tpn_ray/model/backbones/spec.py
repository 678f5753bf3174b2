"""What the rest of the project knows about a backbone. Runs anywhere, torch only.

A backbone is a module that maps clips n c t h w to the outputs of its stages, {stage: n c t h w}. Its `channels` gives
the channels of every stage that it was built with. Its file lists one `BackboneSpec` per name in `SPECS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from tpn_ray.model.heads import HEAD_STD, ClassificationHead
from tpn_ray.model.pixels import IMAGENET_MEAN, IMAGENET_STD

Color = tuple[float, float, float]
KINETICS_MEAN: Color = (110.2008, 100.63983, 95.99475)
KINETICS_STD: Color = (58.14765, 56.46975, 55.332)
"""Of Kinetics' pixels, as in VMZ and torchvision."""

Shift = Literal["residual", "inplace"]
Substitutions = tuple[tuple[str, str], ...]
"""Pairs of a regular expression and its replacement, applied in order."""


class Backbone(nn.Module):
    """The interface of a backbone."""

    channels: dict[int, int]
    """Channels of the output of every stage, by its number, lowest first."""

    zero_residual: bool = False
    """Whether fresh residual branches of three convolutions start at zero: their last norm, which otherwise starts at
    one."""

    def initialise(self) -> None:
        """Draw fresh weights as mmaction2, PySlowFast, torchvision, and 3D-ResNets-PyTorch do for their ResNets.

        Convolutions are Kaiming-normal (fan out, ReLU), or normal with the standard deviation at their `fresh_std`, and
        their biases 0.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                if std := getattr(module, "fresh_std", 0.0):
                    nn.init.normal_(module.weight, std=std)
                else:
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if self.zero_residual and name.endswith("conv3.norm"):
                nn.init.zeros_(module.weight)

    def forward(self, clips: Float[Tensor, "n c t h w"]) -> dict[int, Float[Tensor, "n _ _ _ _"]]:
        """Return the output of every stage by its number."""
        raise NotImplementedError


@dataclass(frozen=True)
class Stage:
    """The output of a stage, relative to the clip."""

    channels: int
    """Number of channels; paths of different speeds are concatenated."""

    space: int
    """Stride in height and width."""

    time: int = 1
    """Stride in frames."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What was published of a backbone, without the pyramid."""

    frames: int = 8
    """Frames of a clip."""

    stride_frames: int = 1
    """Distance between them; 1 where they are sampled from segments."""

    crop_px: int = 224
    """Height and width of a clip."""

    top1: str = ""
    """Accuracy, with the dataset."""

    source: str = ""
    """Where it was published."""

    def __str__(self) -> str:
        return f"{self.top1} ({self.source})" if self.top1 else ""


NOTHING = Published()

STEM = 0
"""Number that stands for everything below the first stage."""


def stage_in_name(name: str) -> int:
    """Return the stage in a parameter's name, such as stages.res4.0.conv1.weight, or `STEM`."""
    found = re.search(r"(?:^|\.)(?:res|mixed)(\d)\.", name)
    return int(found[1]) if found else STEM


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """One kind of backbone in one size."""

    build: Callable[..., Backbone]
    """Builds the stages up to the given one; where frames `shift`, its second argument says where they do."""

    stages: Mapping[int, Stage]
    """The stages by number, lowest first. Stage s halves the clip's height and width s times, unless its file says
    otherwise: res2 to res5 in a ResNet. The highest is what the network without a pyramid classifies."""

    frames: Literal["apart", "shift", "convolve"]
    """How frames meet inside the backbone. apart: not at all; shift: channels move between them; convolve: through
    convolutions over time."""

    sampling: Literal["clip", "segments"]
    """Sampling of frames that it was published with: consecutive ones (at a stride), or one of each segment."""

    head: Callable[[int, int, float, float | None], nn.Module] = ClassificationHead
    """Builds the head, from the number of channels, the number of classes, dropout, and the standard deviation of fresh
    weights (None: PyTorch's default); it maps features n c t h w to scores n k."""

    head_std: float | None = HEAD_STD
    """Standard deviation of the head's fresh weights, without a pyramid."""

    names: Mapping[str, Substitutions] = field(default_factory=dict)
    """For each code base that publishes weights of it: substitutions that turn our names (without "backbone.") into its
    names."""

    stage_of: Callable[[str], int] = stage_in_name
    """Returns the stage that a parameter belongs to, or `STEM`, from its name without "backbone."."""

    added: str = ""
    """Regular expression of entries that start fresh beside the weights of an image network, which has no such
    layers."""

    licence: str = ""
    """Licence of the published weights, with their source."""

    published: Published = NOTHING
    """What was published of it, and with which clips."""

    mean: Color = IMAGENET_MEAN
    """Mean of the pixels that the published weights were trained with, on the scale 0 to 255: red, green, blue."""

    std: Color = IMAGENET_STD
    """Their standard deviation."""

    least_frames: int = 1
    """Shortest clip, in frames."""

    frames_multiple: int = 1
    """The number of frames must be a multiple of this."""

    least_px: int = 1
    """Smallest height and width, in pixels."""
