"""Recipe: everything that determines the quality of the result, nothing about machines. Plain data; runs anywhere."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Any, Literal

from tpn_ray.clips.augment import AugmentConfig
from tpn_ray.clips.sampling import ClipConfig
from tpn_ray.errors import ConfigError
from tpn_ray.model.recognizer import ModelConfig
from tpn_ray.names import no_such
from tpn_ray.redaction import refuse_credentials


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Training loss."""

    lambdas: tuple[float, ...] = (0.5,)
    """Weight of each auxiliary head's loss, lowest level first (lambda_i; the paper: 0.5 on res4)."""

    label_smoothing: float = 0.0
    """Share of the target distribution spread evenly over all classes."""

    mixup: float = 0.0
    """Mixup: clips of a micro-batch are blended in pairs, with shares from a Beta distribution with this parameter on
    both sides (0.8 is usual), and their classes with the same shares; 0 disables it."""

    cutmix: float = 0.0
    """CutMix: a rectangle of a clip is replaced by that of another clip of the micro-batch, in all frames; its area is
    drawn in the same way (1.0 is usual). With mixup, each clip gets one of the two. 0 disables it."""

    def __post_init__(self) -> None:
        if any(weight < 0 for weight in self.lambdas):
            raise ConfigError(f"lambdas={self.lambdas} must not be negative")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing={self.label_smoothing} must be at least 0 and below 1")
        if self.mixup < 0 or self.cutmix < 0:
            raise ConfigError(f"mixup={self.mixup} and cutmix={self.cutmix} must not be negative")


Schedule = Literal["step", "cosine", "one_cycle", "constant"]
Optimizer = Literal["sgd", "adamw"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How the weights are updated. The defaults are the published Kinetics-400 recipe."""

    lr: float = 0.01
    """Peak learning rate; 0.01 is tuned for SGD and batches of 64 clips. AdamW needs one of about 0.0001."""

    optimizer: Optimizer = "sgd"
    """Optimizer: sgd, as published, or adamw, which transformers are trained with."""

    momentum: float = 0.9
    """SGD momentum."""

    nesterov: bool = True
    """Whether SGD uses Nesterov momentum, as the published code does and the paper does not."""

    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decays of the running means of gradients and of their squares."""

    weight_decay: float = 1e-4
    """For SGD, an L2 penalty, applied to all parameters as published. For AdamW, the share that each step, times the
    learning rate, takes off the weights (0.05 is usual)."""

    decay_norm_and_bias: bool = True
    """Whether weight decay also applies to BatchNorm parameters and biases (as published)."""

    clip_norm: float = 40.0
    """Maximum global gradient norm; 0 disables clipping."""

    schedule: Schedule = "step"
    """Learning rate schedule. step: multiply by `gamma` at each milestone. cosine: decay to zero. one_cycle: rise, then
    decay. constant: no change."""

    milestones: tuple[float, ...] = (0.5, 0.8333)
    """For `step`: points at which the rate drops, all as shares of the run below 1 or all as epochs (the published
    code: epochs 75 and 125 of 150; the paper: 100 and 125)."""

    gamma: float = 0.1
    """For `step`: factor applied at each milestone."""

    warmup: float = 0.0
    """Share of the run, or number of epochs if at least 1, over which the rate rises linearly from a tenth of its peak;
    for one_cycle, the length of the rising part."""

    freeze: tuple[str, ...] = ()
    """Parts of the network that are not trained, by name prefix, such as backbone.conv1 backbone.layer1. Their
    BatchNorm uses its stored statistics."""

    scales: tuple[str, ...] = ()
    """Learning rate factors for parts of the network, such as backbone=0.1. The longest matching name prefix
    applies."""

    layer_decay: float = 1.0
    """Factor by which the learning rate falls from one stage of the backbone to the one below: layer_decay in its last
    stage, layer_decay squared in the one before, and so on to the stem. `scales` apply on top. 1: no fall."""

    ema_decay: float = 0.0
    """Decay of an exponential moving average of the weights, such as 0.9998. Above 0, the average is what is scored and
    saved as the network."""

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ConfigError(f"lr={self.lr} must be above 0")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum={self.momentum} must be at least 0 and below 1")
        if self.nesterov and not self.momentum:
            raise ConfigError("nesterov=True needs a momentum above 0")
        if self.optimizer not in ("sgd", "adamw"):
            raise ConfigError(f"optimizer={self.optimizer!r} must be sgd or adamw")
        if self.optimizer == "adamw" and self.momentum != OptimConfig.momentum:
            raise ConfigError(f"momentum={self.momentum} is of sgd; the first of betas is what adamw has instead")
        if self.optimizer == "sgd" and self.betas != OptimConfig.betas:
            raise ConfigError(f"betas={self.betas} are of adamw; set optimizer=adamw, or momentum for sgd")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas={self.betas} must be at least 0 and below 1")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay={self.layer_decay} must be above 0 and at most 1")
        if self.weight_decay < 0 or self.clip_norm < 0:
            raise ConfigError(f"weight_decay={self.weight_decay} and clip_norm={self.clip_norm} must not be negative")
        if self.schedule not in ("step", "cosine", "one_cycle", "constant"):
            raise ConfigError(f"schedule={self.schedule!r} must be step, cosine, one_cycle or constant")
        shares = [point for point in self.milestones if point < 1]
        if (
            len(shares) not in (0, len(self.milestones))
            or any(point <= 0 for point in shares)
            or list(self.milestones) != sorted(self.milestones)
        ):
            raise ConfigError(
                f"milestones={self.milestones} must rise, and be all shares of the run between 0 and 1, or all epochs"
            )
        if self.warmup < 0:
            raise ConfigError(f"warmup={self.warmup} must not be negative")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay={self.ema_decay} must be at least 0 and below 1")
        _ = self.factors

    @property
    def factors(self) -> dict[str, float]:
        """`scales`, parsed: name prefix -> factor."""
        parsed = {}
        for text in self.scales:
            name, _, factor = text.partition("=")
            try:
                parsed[name] = float(factor)
            except ValueError:
                raise ConfigError(f"scales={text!r} is not written as name=factor, such as backbone=0.1") from None
            if not parsed[name] > 0:
                raise ConfigError(f"scales={text!r} must be above 0; to leave a part as it is, freeze it")
        return parsed


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Length, batching, and numerics of the training loop."""

    epochs: int = 150
    """Number of passes over the training videos."""

    batch_clips: int = 64
    """Clips per step, over all workers. The learning rate is tuned for this number."""

    micro_batch_clips: int = 8
    """Clips that are computed together and that BatchNorm sees. Workers share the micro-batches of a step."""

    sync_batch_norm: int = 1
    """Number of workers whose micro-batches BatchNorm normalizes as one (SyncBN); the number of workers must be a
    multiple of it. 1: each micro-batch alone, as in the published training."""

    class_balance: Literal["none", "sqrt", "equal"] = "none"
    """How often the videos of a class are seen in an epoch, whose length stays the same. none: every video once; equal:
    as many clips of each class, so that videos of rare classes come several times, and those of frequent ones take
    turns over the epochs; sqrt: in between, by the square root of a class's number of videos. With several label sets,
    the first counts."""

    evaluate_every_epochs: int = 5
    """Interval in epochs at which the validation videos are scored (one center view) and a checkpoint is kept. The end
    of the run is always evaluated."""

    log_every_steps: int = 10
    """Interval in steps at which loss, accuracy, and speed are gathered from all workers."""

    seed: int = 0
    """Seed for the data order, augmentation, initial weights, and dropout."""

    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Compute precision. tf32: on GPUs, factors of products are rounded to 10 bits, as PyTorch's convolutions do by
    default; bf16: autocast; weights, optimizer state, and loss stay float32."""

    deterministic: bool = False
    """Whether to use only kernels that give the same bits on every run; slower on GPUs. (On CPUs, all kernels do.)"""

    ordered_reduction: bool = False
    """Whether to add up the gradients of a step in the order of its micro-batches, no matter which worker computed
    them. The result has the same bits with any number of workers, at the cost of memory and traffic for one gradient
    per micro-batch."""

    compile: bool = False
    """Whether to compile the network with torch.compile before the first step. Dropout then draws different numbers.
    Micro-batches that lack a bad video run as they are."""

    recompute: bool = False
    """Whether the backward pass computes the inside of each block of the backbone again instead of keeping it: less
    memory, for long clips, and a third more work. The result has the same bits."""

    weights: str = ""
    """Initial weights: a path, s3://bucket/key, https://host/file#sha256=..., or hf://owner/name, in any layout known
    for the backbone (this project's, mmaction2's, the official TPN's, or a 2D ResNet's). A classifier with a different
    number of classes is initialized at random."""

    multigrid: Literal["off", "long", "short", "both"] = "off"
    """Cycles of smaller clips in larger batches (multigrid). long: from short and small clips to full ones, for each
    learning rate; short: smaller height and width in two steps of three. The published schedule: both, with half as
    many epochs more."""

    patience_evaluations: int = 0
    """Consecutive evaluations without a higher score after which the run stops early; 0 disables early stopping."""

    def __post_init__(self) -> None:
        counts = ("epochs", "batch_clips", "micro_batch_clips", "sync_batch_norm", "evaluate_every_epochs")
        for name in (*counts, "log_every_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.batch_clips % self.micro_batch_clips:
            raise ConfigError(
                f"batch_clips={self.batch_clips} is not a multiple of micro_batch_clips={self.micro_batch_clips}"
            )
        if self.micro_batches_per_step % self.sync_batch_norm:
            raise ConfigError(
                f"sync_batch_norm={self.sync_batch_norm} does not divide the {self.micro_batches_per_step} "
                f"micro-batches of a step (batch_clips={self.batch_clips} / micro_batch_clips={self.micro_batch_clips})"
            )
        if self.sync_batch_norm > 1 and self.compile:
            raise ConfigError(
                f"sync_batch_norm={self.sync_batch_norm} cannot be compiled: leave out compile, or the other"
            )
        if self.multigrid != "off" and self.compile:
            raise ConfigError(f"multigrid={self.multigrid!r} cannot be compiled, which is for clips of one shape")
        if self.recompute and (self.compile or self.sync_batch_norm > 1):
            raise ConfigError("recompute=True goes neither with compile nor with sync_batch_norm above 1")
        if self.micro_batch_clips < 2:
            raise ConfigError(f"micro_batch_clips={self.micro_batch_clips}: BatchNorm needs at least 2 clips")
        if self.patience_evaluations < 0:
            raise ConfigError(f"patience_evaluations={self.patience_evaluations} must not be negative")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed} must not be negative")
        if self.class_balance not in ("none", "sqrt", "equal"):
            raise ConfigError(f"class_balance={self.class_balance!r} must be none, sqrt, or equal")
        if self.precision not in ("fp32", "tf32", "bf16"):
            raise ConfigError(f"precision={self.precision!r} must be fp32, tf32, or bf16")
        if self.multigrid not in ("off", "long", "short", "both"):
            raise ConfigError(f"multigrid={self.multigrid!r} must be off, long, short, or both")
        refuse_credentials("weights", self.weights)

    @property
    def micro_batches_per_step(self) -> int:
        return self.batch_clips // self.micro_batch_clips


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A complete recipe, one part per concern.

    In `model`, the number of classes, and whether a video can have several, are set from the dataset. The number of
    input channels is always the clip's.
    """

    clip: ClipConfig = field(default_factory=ClipConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        heads = self.model.auxiliary_count
        if len(self.loss.lambdas) != heads:
            raise ConfigError(
                f"lambdas={self.loss.lambdas} has {len(self.loss.lambdas)} entries, the network has {heads} auxiliary "
                f"heads; give one weight for each pyramid level but the top"
            )
        if self.clip.modality == "flow" and self.augment.colors_change:
            raise ConfigError(
                "flow has no colors to change: with clip.modality flow, set --augment.brightness 0 --augment.contrast 0"
                " --augment.saturation 0 --augment.hue 0"
            )
        if self.clip.modality == "flow" and self.augment.rand_operations:
            raise ConfigError("RandAugment changes pictures, not flow: set --augment.rand-operations 0")
        if self.model.multi_label and self.loss.label_smoothing:
            raise ConfigError(
                f"label_smoothing={self.loss.label_smoothing} is for one class a video, and these videos have several: "
                "set --loss.label-smoothing 0"
            )
        if self.model.multi_label and self.loop.class_balance != "none":
            raise ConfigError(
                f"class_balance={self.loop.class_balance!r} is for one class a video, and these videos have several: "
                "set --loop.class-balance none"
            )
        if self.model.in_channels != self.clip.channels:
            model = dataclasses.replace(self.model, in_channels=self.clip.channels)
            object.__setattr__(self, "model", model)


@functools.cache
def _adapter() -> Any:
    from pydantic import TypeAdapter  # imported here: a recipe is trained where there is no pydantic

    return TypeAdapter(Recipe)


def to_plain(recipe: Recipe) -> dict[str, Any]:
    """Convert a recipe to nested dicts of JSON values."""
    plain: dict[str, Any] = _adapter().dump_python(recipe, mode="json")
    return plain


def from_plain(plain: dict[str, Any]) -> Recipe:
    """Invert `to_plain`. Raises ConfigError for unknown fields or invalid values."""
    from pydantic import ValidationError

    try:
        recipe: Recipe = _adapter().validate_python(plain)
    except ValidationError as error:
        raise ConfigError(f"not a recipe: {error}") from error
    return recipe


def with_defaults(about: dict[str, Any]) -> dict[str, Any]:
    """Return what a run or a campaign is, with the fields of its recipe that it was stored without, at their defaults.

    They did not exist then, and change nothing by default.
    """
    if "recipe" not in about:
        return about
    parts = {part: {**fields, **about["recipe"].get(part, {})} for part, fields in to_plain(Recipe()).items()}
    return {**about, "recipe": parts}


def flat(recipe: Recipe) -> dict[str, Any]:
    """Return every field under its command-line name, such as "optim.lr"."""
    parts = dataclasses.asdict(recipe)
    return {f"{part}.{name}": value for part, fields in parts.items() for name, value in fields.items()}


def replace_fields(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """Return the recipe with some fields, given by their flat names, changed. All checks run again."""
    known = flat(recipe)
    for name in changes:
        if name not in known:
            raise ConfigError(no_such("field of a recipe", name, known))
    parts: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        part, field_name = name.split(".")
        parts.setdefault(part, {})[field_name] = value
    new = {part: dataclasses.replace(getattr(recipe, part), **values) for part, values in parts.items()}
    return dataclasses.replace(recipe, **new)
