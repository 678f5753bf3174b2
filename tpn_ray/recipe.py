"""Recipe: everything that decides how good the result is, and nothing about machines. Plain data; runs anywhere."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from tpn_ray.clips.augment import AugmentConfig
from tpn_ray.clips.sampling import ClipConfig
from tpn_ray.errors import ConfigError
from tpn_ray.model.recognizer import ModelConfig
from tpn_ray.redaction import refuse_credentials


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What training minimises."""

    lambdas: tuple[float, ...] = (0.5,)
    """Weight of each auxiliary head's loss, lowest level first (lambda_i; the paper: 0.5 on res4)."""

    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes."""

    def __post_init__(self) -> None:
        if any(weight < 0 for weight in self.lambdas):
            raise ConfigError(f"lambdas={self.lambdas} must not be negative")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing={self.label_smoothing} must be at least 0 and below 1")


Schedule = Literal["step", "cosine", "one_cycle", "constant"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How the weights are updated. Defaults: the published Kinetics-400 recipe."""

    lr: float = 0.01
    """Highest learning rate; 0.01 is meant for batches of 64 clips."""

    momentum: float = 0.9
    """Momentum of SGD."""

    nesterov: bool = True
    """Nesterov's momentum; in the published code, not in the paper."""

    weight_decay: float = 1e-4
    """L2 penalty, on all parameters as published."""

    decay_norm_and_bias: bool = True
    """Whether weight decay also holds for BatchNorm and biases (as published)."""

    clip_norm: float = 40.0
    """Largest global norm of the gradient; 0 does not clip."""

    schedule: Schedule = "step"
    """step: times `gamma` at each milestone. cosine: to zero. one_cycle: up, then down. constant."""

    milestones: tuple[float, ...] = (0.5, 0.8333)
    """For `step`: when, as shares of the run below 1, or as epochs (the published code: epochs 75 and 125 of 150; the
    paper: 100 and 125)."""

    gamma: float = 0.1
    """For `step`: factor at each milestone."""

    warmup: float = 0.0
    """Share of the run, or number of epochs if at least 1, in which the rate rises linearly from a tenth; for
    one_cycle, the rising part."""

    freeze: tuple[str, ...] = ()
    """Parts that are not trained, by the beginnings of their names, such as backbone.conv1 backbone.layer1; their
    BatchNorm uses its stored statistics."""

    scales: tuple[str, ...] = ()
    """Factors on the learning rate of parts, such as backbone=0.1; of several that fit, the longest name holds."""

    ema_decay: float = 0.0
    """Above 0, an exponential average of the weights is kept, scored and saved as the network; such as 0.9998."""

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ConfigError(f"lr={self.lr} must be above 0")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum={self.momentum} must be at least 0 and below 1")
        if self.nesterov and not self.momentum:
            raise ConfigError("nesterov=True needs a momentum above 0")
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
        """`scales` as beginning of a name -> factor."""
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
    """How long, in which portions, and how exactly."""

    epochs: int = 150
    """Times that every training video is seen."""

    batch_clips: int = 64
    """Clips per step, over all workers: what the learning rate belongs to."""

    micro_batch_clips: int = 8
    """Clips that are computed together, and that BatchNorm sees; workers share out the micro-batches of a step."""

    sync_batch_norm: int = 1
    """Workers whose micro-batches BatchNorm sees as one (SyncBN); their number must be a multiple of it. 1: each
    micro-batch alone, as in the published training."""

    evaluate_every_epochs: int = 5
    """How often the validation videos are scored (one centre view) and a checkpoint is kept; always at the end."""

    log_every_steps: int = 10
    """How often loss, accuracy and speed are gathered from all workers."""

    seed: int = 0
    """Of the order, the augmentation, the first weights and dropout."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast; weights, optimiser and loss stay float32."""

    deterministic: bool = False
    """Only kernels that give the same bits on every run; slower on GPUs. (On CPUs they all do.)"""

    ordered_reduction: bool = False
    """Add up the gradients of a step in the order of its micro-batches, whoever computed them: the same bits with any
    number of workers. Costs memory for one gradient per micro-batch, and their traffic."""

    compile: bool = False
    """Compile the network with torch.compile before the first step. Dropout then draws other numbers than without."""

    weights: str = ""
    """Weights to begin with: a file, folder or URI of any layout that is known (ours, mmaction2's, the official TPN's,
    a 2D ResNet's). Classifiers of another number of classes stay fresh."""

    patience_evaluations: int = 0
    """Stop early when this many evaluations one after the other did not reach a higher top-1; 0 does not."""

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
        if self.micro_batch_clips < 2:
            raise ConfigError(f"micro_batch_clips={self.micro_batch_clips}: BatchNorm needs at least 2 clips")
        if self.patience_evaluations < 0:
            raise ConfigError(f"patience_evaluations={self.patience_evaluations} must not be negative")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed} must not be negative")
        if self.precision not in ("fp32", "bf16"):
            raise ConfigError(f"precision={self.precision!r} must be fp32 or bf16")
        refuse_credentials("weights", self.weights)

    @property
    def micro_batches_per_step(self) -> int:
        return self.batch_clips // self.micro_batch_clips


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One part per owner. The number of classes in `model` is set from the dataset."""

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


_ADAPTER = TypeAdapter(Recipe)


def to_plain(recipe: Recipe) -> dict[str, Any]:
    """As nested dicts of JSON values."""
    plain: dict[str, Any] = _ADAPTER.dump_python(recipe, mode="json")
    return plain


def from_plain(plain: dict[str, Any]) -> Recipe:
    """The inverse of `to_plain`. Raises ConfigError where fields are unknown or values cannot be."""
    try:
        recipe = _ADAPTER.validate_python(plain)
    except ValidationError as error:
        raise ConfigError(f"not a recipe: {error}") from error
    return recipe


def flat(recipe: Recipe) -> dict[str, Any]:
    """Every field by its name on the command line, such as "optim.lr"."""
    parts = dataclasses.asdict(recipe)
    return {f"{part}.{name}": value for part, fields in parts.items() for name, value in fields.items()}


def replace_fields(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """A recipe with some fields, by their flat names, changed; all checks run again."""
    known = flat(recipe)
    for name in changes:
        if name not in known:
            raise ConfigError(f"a recipe has no field {name!r}; it has: {', '.join(known)}")
    parts: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        part, field_name = name.split(".")
        parts.setdefault(part, {})[field_name] = value
    new = {part: dataclasses.replace(getattr(recipe, part), **values) for part, values in parts.items()}
    return dataclasses.replace(recipe, **new)
