"""Measures how fast one process trains and scores with a recipe's network, and compares with the hardware's limit.

Runs on a CPU or on CUDA, without Ray. Times are wall clock; comparisons are medians of the ratios within rounds,
because a machine's speed drifts from round to round.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from tpn_ray.errors import ConfigError
from tpn_ray.model.precision import use_tf32
from tpn_ray.model.recognizer import build_model
from tpn_ray.planning.step_time import rehearse, time_scoring, time_training
from tpn_ray.recipe import Recipe

Precision = Literal["fp32", "tf32", "bf16"]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class StepBench:
    """What to measure."""

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Compute device: cpu, cuda, or cuda:1."""

    precisions: tuple[Precision, ...] = ("fp32",)
    """Precisions to compare: fp32, tf32 (on GPUs), and bf16 by autocast."""

    compiled: tuple[bool, ...] = (False,)
    """Modes to run the network in: False for eager, True for torch.compile."""

    micro_batch_clips: int = 0
    """Number of clips in a micro-batch; 0 takes the recipe's."""

    rounds: int = 5
    """Number of measurements of each variant; the order rotates."""

    threads: int = 0
    """Number of torch's CPU threads; 0 leaves torch's choice."""

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("micro_batch_clips", 0), ("threads", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least {least}")
        if not (self.precisions and self.compiled):
            raise ConfigError("precisions and compiled each need at least one value")


def measure_step(recipe: Recipe, bench: StepBench) -> str:
    """Measure every variant in turns and return a table that compares each with the first."""
    if bench.threads:
        torch.set_num_threads(bench.threads)
    recipes = variants(recipe, bench)
    seconds = measure_in_turns(recipes, bench)
    first, *_ = recipes.values()
    base_train, base_score = zip(*seconds[next(iter(recipes))], strict=True)
    flops, clips = training_flops(first), first.loop.micro_batch_clips
    rates = {precision: matmul_rate(torch.device(bench.device), precision) for precision in bench.precisions}
    lines = [describe(first, bench.device), f"training step: {flops / 1e9:.1f} GFLOP"]
    lines += [f"matrix product, {precision}: {rate / 1e9:.0f} GFLOP/s" for precision, rate in rates.items()]
    lines.append("variant           train clips/s     x       spread  of product  score clips/s     x       spread")
    for name, each in recipes.items():
        train, score = zip(*seconds[name], strict=True)
        share = flops / statistics.median(train) / rates[each.loop.precision]
        lines.append(
            f"{name:16}{clips / statistics.median(train):15.2f}{describe_ratio(base_train, train)}{share:12.0%}"
            f"{clips / statistics.median(score):15.2f}{describe_ratio(base_score, score)}"
        )
    return "\n".join(lines)


def measure_in_turns(recipes: dict[str, Recipe], bench: StepBench) -> dict[str, list[tuple[float, float]]]:
    """Return the seconds of a training step and of scoring in each round, by the variant's name."""
    rehearsed = {name: rehearse(each, bench.device) for name, each in recipes.items()}
    names = list(rehearsed)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for turn in range(-1, bench.rounds):  # the first turn warms up
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            use_tf32(recipes[name].loop.precision == "tf32")  # holds for the process
            times = time_training(*rehearsed[name]), time_scoring(*rehearsed[name])
            if turn >= 0:
                seconds[name].append(times)
    return seconds


def variants(recipe: Recipe, bench: StepBench) -> dict[str, Recipe]:
    """Return the recipe in each precision, eager or compiled, by the variant's name."""
    clips = bench.micro_batch_clips or recipe.loop.micro_batch_clips
    found = {}
    for compiled in bench.compiled:
        for precision in bench.precisions:
            loop = dataclasses.replace(
                recipe.loop,
                precision=precision,
                compile=compiled,
                micro_batch_clips=clips,
                batch_clips=clips,
                sync_batch_norm=1,
            )
            found[f"{precision} {'compiled' if compiled else 'eager'}"] = dataclasses.replace(recipe, loop=loop)
    return found


def training_flops(recipe: Recipe) -> float:
    """Count the floating-point operations of forward and backward, on meta tensors."""
    side_px = recipe.augment.crop_px
    with torch.device("meta"):
        model = build_model(recipe.model)
        clips = torch.empty(recipe.loop.micro_batch_clips, 3, recipe.clip.frames, side_px, side_px)
    with FlopCounterMode(display=False) as counter:
        scores = model(clips)
        sum((part.sum() for part in scores.auxiliary), scores.action.sum()).backward()
    return float(counter.get_total_flops())


def matmul_rate(device: torch.device, precision: Precision) -> float:
    """Measure the operations per second of a large matrix product."""
    use_tf32(precision == "tf32")
    dtype = DTYPES[precision]
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(8):
        begin = time.perf_counter()
        (left @ right)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - begin)
    return 2 * side**3 / min(seconds)


def describe_ratio(base: Sequence[float], other: Sequence[float]) -> str:
    """Format the speedup over the base: median and range of the rounds' ratios."""
    ratios = sorted(a / b for a, b in zip(base, other, strict=True))
    return f"{statistics.median(ratios):6.2f}{f'{ratios[0]:.2f}-{ratios[-1]:.2f}':>13}"


def describe(recipe: Recipe, device: str) -> str:
    """Describe the network, the clips, and the machine."""
    place = torch.device(device)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    side_px = recipe.augment.crop_px
    shape = f"{recipe.loop.micro_batch_clips} clips of {recipe.clip.frames}x{side_px}x{side_px}"
    return f"{recipe.model.backbone}, neck {recipe.model.neck}, {shape}; {name}; torch {torch.__version__}"
