"""How fast a step is: this package's network against the plain formulation, in turns, with the floor by arithmetic.

Runs on a CPU or on CUDA. Times are wall clock; comparisons are medians of the ratios within rounds, because a machine's
speed drifts from round to round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tpn_ray.errors import ConfigError
from tpn_ray.model.plain import plain_forward
from tpn_ray.model.recognizer import ModelConfig, Recognizer, Scores, build_model

Precision = Literal["fp32", "bf16"]
Form = Literal["ours", "plain", "plain-channels-last"]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "bf16": 5e-2}
"""How far scores may be from the plain form's in float32, relative to the largest score."""


@dataclass(frozen=True, kw_only=True)
class StepBench:
    """What to measure."""

    model: ModelConfig = field(default_factory=lambda: ModelConfig(dropout=0.0))
    """The network."""

    batch: int = 2
    """Clips in a batch."""

    frames: int = 8
    """Frames of a clip; segments for tsn and tsm."""

    size: int = 112
    """Height and width of a frame, in pixels."""

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """cpu, cuda or cuda:1."""

    forms: tuple[Form, ...] = ("plain", "plain-channels-last", "ours")
    """plain: the published code's formulation, in contiguous memory. Others are compared with the first form."""

    precisions: tuple[Precision, ...] = ("fp32",)
    """fp32, or bf16 by autocast."""

    compiled: tuple[bool, ...] = (False,)
    """Eager, compiled by torch.compile, or both."""

    rounds: int = 5
    """Times each variant is measured; the order rotates."""

    threads: int = 0
    """CPU threads of torch; 0 leaves torch's choice."""

    def __post_init__(self) -> None:
        for name in ("batch", "frames", "size", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if not (self.forms and self.precisions and self.compiled):
            raise ConfigError("forms, precisions and compiled each need at least one value")
        modulated = self.model.spatial_modulation and self.model.temporal_modulation
        if self.model.neck == "tpn" and not modulated and set(self.forms) != {"ours"}:
            raise ConfigError("the plain form knows no ablations of modulation; measure them with --forms ours")


@dataclass(frozen=True)
class Row:
    """One variant's figures."""

    name: str
    """Form, precision and whether compiled."""

    train_seconds: tuple[float, ...]
    """Forward, loss, backward; one entry per round."""

    infer_seconds: tuple[float, ...]
    """Forward in evaluation mode."""

    scores_error: float
    """Largest difference of evaluation scores from the first variant's, relative to the largest score."""

    floor_seconds: float
    """Training step if all its multiplications ran at the rate of a large matrix product in that precision."""


@dataclass(frozen=True)
class Report:
    """Everything a run measured."""

    machine: str
    """Device and torch version."""

    batch: int
    """Clips in a batch."""

    rows: tuple[Row, ...]
    """Variants, the one compared with first."""

    train_flops: float
    """Floating-point operations of a training step."""

    matmul_flops_per_second: dict[Precision, float]
    """Rate of a large matrix product."""

    def __str__(self) -> str:
        lines = [self.machine, f"training step: {self.train_flops / 1e9:.1f} GFLOP"]
        lines += [
            f"matrix product, {name}: {rate / 1e9:.0f} GFLOP/s" for name, rate in self.matmul_flops_per_second.items()
        ]
        heads = ["train clips/s", "x", "spread", "of floor", "infer clips/s", "x", "spread", "error"]
        widths = [14, 6, 13, 9, 15, 6, 13, 9]
        lines.append(f"{'variant':32}" + "".join(f"{h:>{w}}" for h, w in zip(heads, widths, strict=True)))
        first = self.rows[0]
        for row in self.rows:
            train, infer = statistics.median(row.train_seconds), statistics.median(row.infer_seconds)
            training = f"{self.batch / train:14.2f}{describe_ratio(first.train_seconds, row.train_seconds)}"
            inference = f"{self.batch / infer:15.2f}{describe_ratio(first.infer_seconds, row.infer_seconds)}"
            floor = row.floor_seconds / train
            lines.append(f"{row.name:32}{training}{floor:9.0%}{inference}{row.scores_error:9.0e}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Variant:
    """One way to compute the same network."""

    name: str
    precision: Precision
    model: Recognizer
    forward: Callable[[Tensor], Scores]
    clips: Tensor


def measure_step(bench: StepBench) -> Report:
    """Measure every variant in turns, after checking that they compute the same."""
    if bench.threads:
        torch.set_num_threads(bench.threads)
    variants = make_variants(bench)
    errors = check(variants)
    train: dict[str, list[float]] = {variant.name: [] for variant in variants}
    infer: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for turn in range(-1, bench.rounds):  # the first turn warms up
        shift = turn % len(variants)
        for variant in variants[shift:] + variants[:shift]:
            seconds = time_train(variant), time_infer(variant)
            if turn >= 0:
                train[variant.name].append(seconds[0])
                infer[variant.name].append(seconds[1])
    flops = training_flops(bench)
    rates = {precision: matmul_rate(torch.device(bench.device), DTYPES[precision]) for precision in bench.precisions}
    rows = tuple(
        Row(v.name, tuple(train[v.name]), tuple(infer[v.name]), errors[v.name], flops / rates[v.precision])
        for v in variants
    )
    return Report(machine(bench), bench.batch, rows, flops, rates)


def make_variants(bench: StepBench) -> list[Variant]:
    """One network per form, with the same weights and clips; precision and compilation are ways to run it."""
    torch.manual_seed(0)
    weights = build_model(bench.model).state_dict()
    clips = torch.randn(bench.batch, 3, bench.frames, bench.size, bench.size)
    variants = []
    for form in bench.forms:
        model = build_model(bench.model, "fast")
        model.load_state_dict(weights)
        # The plain form reads kernels o i h w as o i 1 h w, as the published code has them, so they must be contiguous:
        # from channels-last ones, torch 2.13's bf16 conv3d on CPU makes wrong numbers without a word.
        kernels = torch.channels_last if form == "ours" else torch.contiguous_format
        model = model.to(device=bench.device).to(memory_format=kernels)  # type: ignore[call-overload]
        order = torch.contiguous_format if form == "plain" else torch.channels_last_3d
        placed = clips.to(bench.device).contiguous(memory_format=order)
        for compiled in bench.compiled:
            forward = forward_of(model, form)
            if compiled:
                forward = torch.compile(forward)
            for precision in bench.precisions:
                name = f"{form} {precision} {'compiled' if compiled else 'eager'}"
                variants.append(Variant(name, precision, model, forward, placed))
    return variants


def forward_of(model: Recognizer, form: Form) -> Callable[[Tensor], Scores]:
    """The function that a form calls on clips."""
    if form == "ours":
        return model
    return lambda clips: Scores(*plain_forward(model, clips))


def check(variants: Sequence[Variant]) -> dict[str, float]:
    """How far each variant's scores are from the first one's; refuses to time what computes something else."""
    errors: dict[str, float] = {}
    expected: Tensor | None = None
    for variant in variants:
        variant.model.eval()
        with torch.no_grad(), precision_of(variant):
            scores = variant.forward(variant.clips).action.float().cpu()
        expected = scores if expected is None else expected
        errors[variant.name] = ((scores - expected).abs().max() / expected.abs().max()).item()
        loosest = max(TOLERANCE[variant.precision], TOLERANCE[variants[0].precision])
        if not errors[variant.name] < loosest:
            raise ConfigError(
                f"{variant.name} does not compute what {variants[0].name} computes: scores differ by "
                f"{errors[variant.name]:.1e} of the largest, {loosest:.0e} is allowed"
            )
    return errors


def time_train(variant: Variant) -> float:
    """Seconds of forward, loss and backward (the optimiser's step is the same for all forms)."""
    variant.model.train()
    variant.model.zero_grad(set_to_none=True)
    labels = torch.zeros(len(variant.clips), dtype=torch.long, device=variant.clips.device)
    begin = now(variant.clips.device)
    with precision_of(variant):
        scores = variant.forward(variant.clips)
        loss = F.cross_entropy(scores.action, labels)
        for auxiliary in scores.auxiliary:
            loss = loss + 0.5 * F.cross_entropy(auxiliary, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    return now(variant.clips.device) - begin


def time_infer(variant: Variant) -> float:
    """Seconds of a forward pass in evaluation mode."""
    variant.model.eval()
    begin = now(variant.clips.device)
    with torch.no_grad(), precision_of(variant):
        variant.forward(variant.clips)
    return now(variant.clips.device) - begin


def precision_of(variant: Variant) -> AbstractContextManager[object]:
    """Autocast to the variant's precision."""
    return torch.autocast(variant.clips.device.type, torch.bfloat16, enabled=variant.precision == "bf16")


def training_flops(bench: StepBench) -> float:
    """Operations of forward and backward, counted on tensors without memory."""
    with torch.device("meta"):
        model = build_model(bench.model, "fast")
        clips = torch.empty(bench.batch, 3, bench.frames, bench.size, bench.size)
    with FlopCounterMode(display=False) as counter:
        scores = model(clips)
        sum((part.sum() for part in scores.auxiliary), scores.action.sum()).backward()
    return float(counter.get_total_flops())


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product."""
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(8):
        begin = now(device)
        left @ right
        seconds.append(now(device) - begin)
    return 2 * side**3 / min(seconds)


def now(device: torch.device) -> float:
    """Seconds, once the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def describe_ratio(base: Sequence[float], other: Sequence[float]) -> str:
    """How many times as fast as the base: median and range of the rounds' ratios."""
    ratios = sorted(a / b for a, b in zip(base, other, strict=True))
    return f"{statistics.median(ratios):6.2f}{f'{ratios[0]:.2f}-{ratios[-1]:.2f}':>13}"


def machine(bench: StepBench) -> str:
    """What it ran on."""
    device = torch.device(bench.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    shape = f"{bench.batch} clips of {bench.frames}x{bench.size}x{bench.size}"
    return f"{bench.model.backbone}, neck {bench.model.neck}, {shape}; {name}; torch {torch.__version__}"
