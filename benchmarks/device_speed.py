"""Sections of `benchmarks.device`: the speed of steps and tests, against the network as usually written. Torch only."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.device_bench import Bench, in_turns, product_rate
from benchmarks.plain_network import plain_copy
from tpn_ray.model.folding import fold_batch_norms
from tpn_ray.model.precision import use_tf32
from tpn_ray.model.recognizer import build_model
from tpn_ray.recipe import LoopConfig, LossConfig, OptimConfig
from tpn_ray.training.goodput import Clock
from tpn_ray.training.step import MicroBatch, Training

TRAINING_FLOPS, SCORING_FLOPS = 344.16e9, 131.3e9
"""Of k400_r50_8x8: for one clip of 8x224x224 in training, and for one view of 8x256x256 in a test."""


def step_of(bench: Bench, micro_batches: int, **loop: Any) -> tuple[Training, list[MicroBatch]]:
    """Return a training and one step's clips of noise, 8 in a micro-batch."""
    frames, px = bench.clip
    size = 2 if bench.small else 8
    settings = LoopConfig(batch_clips=size * micro_batches, micro_batch_clips=size, **loop)
    model = dataclasses.replace(bench.model, dropout=0.0)
    training = Training(model, LossConfig(), OptimConfig(), settings, bench.device)
    clips = torch.randint(256, (size, frames, px, px, 3), dtype=torch.uint8, device=bench.device)
    labels = torch.zeros(size, 1, dtype=torch.long, device=bench.device)
    return training, [MicroBatch(i, clips, labels) for i in range(micro_batches)]


def waits(bench: Bench) -> None:
    """How often a steady step waits for the GPU, how busy it is, and how much memory it takes."""
    training, step = step_of(bench, 2 if bench.small else 8, precision="bf16" if bench.gpu else "fp32")
    for _ in range(3):
        training.train_step(step, 100)
    if not bench.gpu:
        bench.tell("waits of a step", "no GPU")
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.train_step(step, 100)
        bench.tell("waits of a step", "0", "0", passed=True)
    except RuntimeError as error:
        bench.tell("waits of a step", str(error).splitlines()[0], "0", passed=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.reset_peak_memory_stats(bench.device)
    host = time.perf_counter()
    training.train_step(step, 100)
    host = time.perf_counter() - host
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        seconds = bench.seconds(lambda: training.train_step(step, 100))
    kernels = [event for event in profile.events() if event.device_type == torch.profiler.DeviceType.CUDA]
    busy = sum(event.time_range.elapsed_us() for event in kernels) / 1e6
    bench.tell("kernels of a micro-batch", f"{len(kernels) / len(step):.0f}")
    bench.tell("host time to launch a step", f"{host * 1000:.1f} ms of {seconds * 1000:.1f} ms")
    bench.require("share of the time in which the GPU is busy", busy / seconds, 0.95, above=True)
    peak = torch.cuda.max_memory_allocated(bench.device) / 2**30
    bench.require("memory at the peak", peak, 12, unit=" GiB")
    clock = Clock.of(bench.device)
    with clock.booking("compute"):
        launched = time.perf_counter()
        training.train_step(step, 100)
    booked = clock.take()["compute"]
    bench.wait()
    off = abs(booked / (time.perf_counter() - launched) - 1)
    bench.require("error of the time booked to a step", off, 0.05)
    del training
    again, step = step_of(bench, len(step), precision="bf16", recompute=True)
    again.train_step(step, 100)
    torch.cuda.reset_peak_memory_stats(bench.device)
    again.train_step(step, 100)
    less = torch.cuda.max_memory_allocated(bench.device) / 2**30
    bench.require("memory at the peak, recomputing", less, peak, unit=" GiB")


def training(bench: Bench) -> None:
    """Whole steps in turns: the network as it is usually written, and this project's."""
    count = 2 if bench.small else 8
    rates = {precision: product_rate(bench, precision) for precision in ("tf32", "bf16")}
    steps: dict[str, Callable[[], Any]] = {}
    variants: dict[str, dict[str, Any]] = {"ours fp32": {"precision": "fp32"}}
    if bench.gpu:
        variants |= {
            "ours tf32": {"precision": "tf32"},
            "ours bf16": {"precision": "bf16"},
            "ours bf16 deterministic": {"precision": "bf16", "deterministic": True},
            "ours bf16 compiled": {"precision": "bf16", "compile": True},
        }
    clips = 0
    for name, loop in variants.items():
        each, step = step_of(bench, count, **loop)
        clips = sum(len(one.labels) for one in step)
        steps[name] = lambda each=each, step=step, loop=loop: own_step(each, step, loop)  # type: ignore[misc]
    if not bench.small:
        each, step = step_of(bench, count)
        for name, precision, memory in (
            ("plain NCDHW tf32", "tf32", torch.contiguous_format),
            ("plain NCDHW bf16", "bf16", torch.contiguous_format),
            ("plain channels_last_3d bf16", "bf16", torch.channels_last_3d),
        ):
            network = plain_copy(each.model).train().to(memory_format=memory)  # type: ignore[call-overload]
            optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
            arguments = (each, network, optimizer, step, precision, memory)
            steps[name] = lambda arguments=arguments: plain_step(*arguments)  # type: ignore[misc]
        first = [plain_loss(each, plain_copy(each.model).train(), step[0], torch.contiguous_format).item()]
        ours = each.train_step([step[0], *step[1:]], 100).losses[0].item()
        bench.require("the same loss, plain and ours", abs(ours / first[0] - 1), 1e-3)
    seconds = in_turns(bench, steps, rounds=2 if bench.small else 5)
    speeds = {name: clips / statistics.median(values) for name, values in seconds.items()}
    for name, speed in speeds.items():
        share = TRAINING_FLOPS * speed / rates["bf16" if "bf16" in name else "tf32"]
        bench.tell(name, f"{speed:.1f} clips/s" + ("" if bench.small else f", {share:.3f} of the matrix product"))
    if not bench.gpu or bench.small:
        return
    best = max(speeds["ours bf16"], speeds["ours bf16 compiled"])
    bench.speed("share of the matrix product", TRAINING_FLOPS * best / rates["bf16"], 0.20)
    bench.speed("times plain NCDHW bf16", best / speeds["plain NCDHW bf16"], 1.5)
    bench.speed("times plain channels_last_3d bf16", best / speeds["plain channels_last_3d bf16"], 1.2)
    bench.speed("deterministic over fast", speeds["ours bf16 deterministic"] / speeds["ours bf16"], 0.9)


def own_step(each: Training, step: list[MicroBatch], loop: dict[str, Any]) -> None:
    """One step of the project, with the process's switches as the training wants them."""
    fixed = bool(loop.get("deterministic"))
    use_tf32(loop["precision"] == "tf32")
    torch.use_deterministic_algorithms(fixed)
    torch.backends.cudnn.benchmark = not fixed
    each.train_step(step, 100)


def plain_loss(each: Training, network: nn.Module, batch: MicroBatch, memory: torch.memory_format) -> Tensor:
    clips = each.normalise(batch.clips).contiguous(memory_format=memory)
    scores, auxiliary = network(clips)
    labels = batch.labels[:, 0]
    return F.cross_entropy(scores.float(), labels) + 0.5 * F.cross_entropy(auxiliary.float(), labels)


def plain_step(
    each: Training,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: list[MicroBatch],
    precision: str,
    memory: torch.memory_format,
) -> None:
    """The same step with the plain network, as a training script would write it."""
    use_tf32(precision == "tf32")
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = True
    optimizer.zero_grad(set_to_none=True)
    for batch in step:
        with torch.autocast(batch.clips.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = plain_loss(each, network, batch, memory)
        torch.autograd.backward(loss / len(step))
    nn.utils.clip_grad_norm_(network.parameters(), 40)
    optimizer.step()


@torch.inference_mode()
def inference(bench: Bench) -> None:
    """The views of a video: in float32, in bf16, with folded batch norm, and compiled."""
    views, frames, px = (2, 4, 32) if bench.small else (30, 8, 256)
    model = build_model(bench.model).to(bench.device).eval()
    torch.nn.init.normal_(model.head.linear.weight)  # type: ignore[union-attr, arg-type]
    clips = torch.randn(views, 3, frames, px, px, device=bench.device).contiguous(memory_format=torch.channels_last_3d)

    def score(network: nn.Module, precision: str) -> Tensor:
        use_tf32(precision == "tf32")
        with torch.autocast(clips.device.type, torch.bfloat16, enabled=precision == "bf16"):
            scores: Tensor = network(clips).action.float().softmax(1).mean(0)
        return scores

    folded = copy.deepcopy(model)
    fold_batch_norms(folded)
    acts: dict[str, Callable[[], Tensor]] = {
        "fp32": lambda: score(model, "fp32"),
        "fp32 folded": lambda: score(folded, "fp32"),
    }
    if bench.gpu:
        compiled = torch.compile(folded)
        acts |= {
            "tf32": lambda: score(model, "tf32"),
            "bf16": lambda: score(model, "bf16"),
            "bf16 folded": lambda: score(folded, "bf16"),
            "bf16 folded compiled": lambda: score(compiled, "bf16"),  # type: ignore[arg-type]
        }
    exact = acts["fp32"]()
    seconds = in_turns(bench, acts, rounds=2 if bench.small else 5)
    rate = product_rate(bench, "bf16")
    for name, values in seconds.items():
        videos = 1 / statistics.median(values)
        bench.tell(f"videos of {views} views, {name}", f"{videos:.1f} videos/s")
        limit = 1e-5 if name.startswith("fp32") else 1e-2
        bench.require(f"largest error of a probability, {name}", (acts[name]() - exact).abs().max().item(), limit)
        if name == "bf16 folded compiled":
            bench.speed("share of the matrix product", SCORING_FLOPS * views * videos / rate, 0.35)
