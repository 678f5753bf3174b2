"""The whole network: ModelConfig -> Recognizer, clips -> Scores. Runs anywhere, torch only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tpn_ray.errors import ConfigError
from tpn_ray.model.backbones import backbone_spec
from tpn_ray.model.backbones.spec import Backbone, BackboneSpec, Shift
from tpn_ray.model.heads import HEAD_STD, AuxiliaryHead
from tpn_ray.model.pixels import FLOW_MEAN, FLOW_STD, Normalise
from tpn_ray.model.tpn import PYRAMIDS, Flow, TemporalPyramid
from tpn_ray.names import no_such

RGB_CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network: everything that determines the shapes of its weights and what it computes."""

    backbone: str = "slowonly_r50"
    """Name of the backbone and its size, such as slowonly_r50 ("I3D" in the paper); with timm installed, also
    timm/resnet34 and timm_tsm/resnet34 for any of its image networks, frames apart or with temporal shift."""

    classes: int | tuple[int, ...] = 400
    """Number of classes; several numbers for several label sets, such as verbs and nouns."""

    multi_label: bool = False
    """Whether a video can have several classes at once, each of which is scored by itself; set from the dataset."""

    in_channels: int = 3
    """Channels of the clips; always those of the recipe's clip: 3 for RGB, 2 for flow, 10 for stacks of 5 flow
    frames."""

    neck: Literal["tpn", "none"] = "tpn"
    """Neck between backbone and head. tpn: the pyramid of the paper; none: the plain backbone, its baseline."""

    levels: tuple[int, ...] = (4, 5)
    """Stages whose outputs are the pyramid's levels, lowest first; a single stage makes the single-depth pyramid."""

    rates: tuple[int, ...] = ()
    """Sampling rates for a single stage in `levels`: level i takes every rates[i]-th frame of it, for example 1 2 4
    8."""

    flow: Flow = "cascade"
    """Information flow between levels. cascade: how the published weights were trained; parallel: the paper's."""

    alpha: tuple[int, ...] = (8, 8)
    """Temporal modulation: level i is max-pooled over alpha[i] frames. Fits any weights; may change during training."""

    spatial_modulation: bool = True
    """Whether convolutions bring lower levels to the top's size and channels; off only for the paper's table 6b."""

    temporal_modulation: bool = True
    """Whether frames are convolved and pooled by alpha; off only for the paper's table 6b."""

    auxiliary_heads: bool = True
    """Whether every level but the top has a classification head, used only in training."""

    dropout: float = 0.5
    """Share of features dropped before each linear layer in training."""

    shift: Shift = "residual"
    """Placement of the temporal shift, for tsm only. residual: mmaction2's; inplace: the official TPN code's, which its
    Something-Something weights need."""

    def __post_init__(self) -> None:
        backbone_spec(self.backbone)
        if not self.label_sets or min(self.label_sets) < 1:
            raise ConfigError(f"classes={self.classes!r}: every label set needs at least one class")
        if self.multi_label and len(self.label_sets) > 1:
            raise ConfigError(f"classes={self.classes!r}: several classes a video go with one label set, not several")
        if self.in_channels < 1:
            raise ConfigError(f"in_channels={self.in_channels!r} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout!r} must be at least 0 and below 1")
        if self.shift not in ("residual", "inplace"):
            raise ConfigError(f"shift={self.shift!r} must be residual or inplace")
        if self.shift == "inplace" and self.spec.frames != "shift":
            raise ConfigError(f"shift='inplace' is for tsm backbones; {self.backbone} shifts nothing")
        if self.neck not in ("tpn", "none"):
            raise ConfigError(f"neck={self.neck!r} must be tpn or none")
        if self.neck == "tpn":
            self._check_pyramid()

    def _check_pyramid(self) -> None:
        if self.flow not in PYRAMIDS:
            raise ConfigError(no_such("flow", self.flow, PYRAMIDS))
        stages = self.spec.stages
        if not set(self.levels) <= set(stages) or list(self.levels) != sorted(set(self.levels)) or not self.levels:
            raise ConfigError(
                f"levels={self.levels!r} must be stages of {self.backbone}, out of {tuple(stages)}, lowest first, each "
                "once"
            )
        if self.rates and len(self.levels) > 1:
            raise ConfigError(f"rates={self.rates!r} go with one stage in levels, not with levels={self.levels!r}")
        if len(self.levels) == 1 and len(self.rates) < 2:
            raise ConfigError(
                f"levels={self.levels!r} with rates={self.rates!r} is not a pyramid: give two or more of either"
            )
        if any(rate < 1 for rate in self.rates) or list(self.rates) != sorted(set(self.rates)):
            raise ConfigError(f"rates={self.rates!r} must be ascending whole numbers from 1")
        depth = len(self.rates) or len(self.levels)
        if len(self.alpha) != depth:
            raise ConfigError(f"alpha={self.alpha!r} has {len(self.alpha)} entries, the pyramid has {depth} levels")
        if min(self.alpha) < 1 or any(pool % 1 for pool in self.alpha):
            raise ConfigError(f"alpha={self.alpha!r} must be whole numbers from 1")
        strides = [rate * pool for rate, pool in zip(self.time_strides, self.alpha, strict=True)]
        if any(upper % lower for lower, upper in pairwise(strides)):
            # A level's time resolution is that of the level below or coarser; its frames cover whole frames of that
            # one.
            raise ConfigError(
                f"alpha={self.alpha!r} pools {strides} frames into one: each level needs a multiple of the one before"
            )

    @property
    def spec(self) -> BackboneSpec:
        """What is known about the backbone."""
        return backbone_spec(self.backbone)

    def backbone_up_to(self, top: int) -> Backbone:
        """Build the backbone's stages up to `top`, for RGB."""
        return self.spec.build(top, self.shift) if self.spec.frames == "shift" else self.spec.build(top)

    @property
    def used_stages(self) -> tuple[int, ...]:
        """The stages whose outputs are used: the pyramid's levels, or the highest."""
        return self.levels if self.neck == "tpn" else (max(self.spec.stages),)

    @property
    def time_strides(self) -> tuple[int, ...]:
        """Number of clip frames per frame of each level, before alpha: the sampling rates, or the backbone's strides.

        These are relative to the lowest level.
        """
        strides = [self.spec.stages[level].time for level in self.levels]
        return self.rates or tuple(stride // strides[0] for stride in strides)

    @property
    def label_sets(self) -> tuple[int, ...]:
        """Number of classes of each label set."""
        return (self.classes,) if isinstance(self.classes, int) else self.classes

    @property
    def auxiliary_count(self) -> int:
        """Number of auxiliary heads and of their loss weights (the paper's lambda_i).

        A single-depth pyramid has none: its levels are one and the same feature, so none of them lacks semantics.
        """
        if self.neck == "none" or not self.auxiliary_heads:
            return 0
        return len(self.levels) - 1


class Scores(NamedTuple):
    """The network's output for a batch of clips: unnormalized scores."""

    action: Float[Tensor, "n k"]
    """One column per class; several label sets are concatenated, see `split_label_sets`."""

    auxiliary: tuple[Float[Tensor, "n k"], ...]
    """In training, one entry per auxiliary head, lowest level first; otherwise empty, with nothing computed."""


class Recognizer(nn.Module):
    """Backbone, pyramid, and heads. The total loss, CE + sum of lambda_i CE_i, is computed outside, from Scores."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        classes = sum(config.label_sets)
        self.levels = config.used_stages
        self.backbone = config.backbone_up_to(self.levels[-1])
        take_channels(self.backbone, config.in_channels)
        stages = [config.spec.stages[level] for level in self.levels]
        channels = [stage.channels for stage in stages]
        self.neck: TemporalPyramid | None = None
        if config.neck == "tpn":
            self.neck = TemporalPyramid(
                stages * (len(config.rates) or 1),
                flow=config.flow,
                rates=config.rates or (1,) * len(stages),
                alpha=config.alpha,
                spatial_modulation=config.spatial_modulation,
                temporal_modulation=config.temporal_modulation,
            )
        self.auxiliary = nn.ModuleList(
            AuxiliaryHead(channels[i], classes, config.dropout) for i in range(config.auxiliary_count)
        )
        std = HEAD_STD if self.neck else config.spec.head_std
        self.head = config.spec.head(channels[-1], classes, config.dropout, std)

    def forward(self, clips: Float[Tensor, "n c t h w"]) -> Scores:
        """Score normalized clips; where frames are sampled from segments, a clip's frames are these."""
        check_clips(self.config, clips)
        stages = self.backbone(clips)
        levels = [stages[level] for level in self.levels]
        heads = zip(self.auxiliary, levels, strict=False) if self.training else ()
        auxiliary = tuple(head(level) for head, level in heads)
        feature = levels[-1] if self.neck is None else self.neck(levels * (len(self.config.rates) or 1))
        return Scores(self.head(feature), auxiliary)


def build_model(config: ModelConfig) -> Recognizer:
    """Build a network with fresh weights, in the memory format it works in."""
    model = Recognizer(config)
    model.backbone.initialise()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            flat = isinstance(module, nn.Conv2d)
            module.to(memory_format=torch.channels_last if flat else torch.channels_last_3d)  # type: ignore[call-overload]
    return model


def set_alpha(model: Recognizer, alpha: tuple[int, ...]) -> None:
    """Set the temporal rates of a built network; its weights stay unchanged."""
    if model.neck is None:
        raise ConfigError(f"alpha={alpha!r} cannot be set: the network has no pyramid (neck='none')")
    model.config = replace(model.config, alpha=tuple(alpha))
    model.neck.alpha = model.config.alpha


def split_label_sets(scores: Float[Tensor, "n k"], classes: int | tuple[int, ...]) -> tuple[Tensor, ...]:
    """Split scores by label set, in the order of `ModelConfig.classes`."""
    sizes = (classes,) if isinstance(classes, int) else classes
    if sum(sizes) != scores.shape[1]:
        raise ValueError(f"{scores.shape[1]} scores cannot be split into label sets of {sizes} classes")
    return torch.split(scores, list(sizes), dim=1)


def take_channels(backbone: Backbone, channels: int) -> None:
    """Give the convolutions that see the clips, which are built for RGB, other input channels and fresh weights."""
    if channels == RGB_CHANNELS:
        return
    for module in backbone.modules():
        pixels = int(getattr(module, "pixels_seen", 1))  # at one place; more where pixels become channels, as in S3D-G
        if isinstance(module, nn.Conv2d | nn.Conv3d) and module.in_channels == pixels * RGB_CHANNELS:
            module.in_channels = pixels * channels
            shape = module.out_channels, module.in_channels, *module.weight.shape[2:]
            module.weight = nn.Parameter(module.weight.new_empty(shape))
            module.reset_parameters()


def normaliser(config: ModelConfig) -> Normalise:
    """Return what turns stored pixels into the network's input: RGB as its published weights need, flow alike for
    all."""
    if config.in_channels == RGB_CHANNELS:
        return Normalise(config.spec.mean, config.spec.std)
    return Normalise(FLOW_MEAN, FLOW_STD, stack=config.in_channels // len(FLOW_MEAN))


def check_clips(config: ModelConfig, clips: Float[Tensor, "n c t h w"]) -> None:
    """Raise ConfigError for clips that the network cannot process."""
    _, c, t, h, w = clips.shape
    spec = config.spec
    if c != config.in_channels:
        raise ConfigError(
            f"clips of shape {tuple(clips.shape)}: dimension 1 must be the {config.in_channels} channels, it is {c}"
        )
    needed = max(config.rates, default=1) if config.neck == "tpn" else 1
    if t < needed:
        raise ConfigError(f"clips of {t} frames are too short: rates={config.rates!r} need at least {needed}")
    if t < spec.least_frames or t % spec.frames_multiple:
        raise ConfigError(
            f"clips of {t} frames: {config.backbone} needs at least {spec.least_frames}, in multiples of "
            f"{spec.frames_multiple}"
        )
    if min(h, w) < (least := spec.least_px):
        raise ConfigError(f"clips of {h} x {w} pixels: {config.backbone} needs at least {least} x {least}")
