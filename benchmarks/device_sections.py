"""The sections of `benchmarks.device`. Run each as `python -m benchmarks.device_sections SECTION DEVICE RESULTS SMALL`.

Baselines and the project's own networks run in turns, in one process; figures are medians of the rounds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from benchmarks.plain_network import plain_copy
from tests.model.vectors import noise, reference
from tpn_ray.clips.develop import develop
from tpn_ray.clips.notes import NO_CLIP, PLANES, Note
from tpn_ray.model.convolution_check import TOLERANCE, convolution_self_test
from tpn_ray.model.recognizer import ModelConfig, Recognizer, build_model
from tpn_ray.model.weights import load_weights
from tpn_ray.recipe import LoopConfig, LossConfig, OptimConfig
from tpn_ray.training.step import MicroBatch, Training, use_tf32

TRAINING_FLOPS, SCORING_FLOPS = 344.16e9, 131.3e9
"""Of k400_r50_8x8: for one clip of 8x224x224 in training, and for one view of 8x256x256 in a test."""

CASES = {"slowonly_r50_k400_cascade": ModelConfig(dropout=0.0)}
CASES["tsm_r50_sthv1_cascade"] = ModelConfig(backbone="tsm_r50", classes=174, dropout=0.0)


@dataclass(frozen=True)
class Bench:
    """Where and how large to measure, and where results go."""

    section: str
    device: str
    results: Path
    small: bool

    @property
    def gpu(self) -> bool:
        return torch.device(self.device).type == "cuda"

    @property
    def model(self) -> ModelConfig:
        """The published network, or a toy."""
        return ModelConfig(backbone="slowonly_toy", classes=5, alpha=(1, 2)) if self.small else ModelConfig()

    @property
    def clip(self) -> tuple[int, int]:
        """Frames and pixels of a training clip."""
        return (4, 32) if self.small else (8, 224)

    def tell(self, name: str, value: str, limit: str = "", passed: bool | None = None) -> None:
        """Write a result at once."""
        line = {"section": self.section, "name": name, "value": value, "limit": limit, "passed": passed}
        with self.results.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def require(self, name: str, value: float, limit: float, *, above: bool = False, unit: str = "") -> None:
        """Write whether a number is below its limit, or above it."""
        passed = value >= limit if above else value <= limit
        self.tell(name, f"{value:.3g}{unit}", f"{'at least' if above else 'at most'} {limit:g}{unit}", passed)

    def speed(self, name: str, value: float, limit: float) -> None:
        """Write a figure of speed, which is only required of the published network on a GPU."""
        if self.gpu and not self.small:
            self.require(name, value, limit, above=True)
        else:
            self.tell(name, f"{value:.3g}")

    def seconds(self, act: Callable[[], Any]) -> float:
        """Return the seconds that something takes, until the device has done it."""
        self.wait()
        begin = time.perf_counter()
        act()
        self.wait()
        return time.perf_counter() - begin

    def wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize(self.device)


def environment(bench: Bench) -> None:
    """Versions, and what this machine can do at best."""
    bench.tell("python, torch", f"{platform.python_version()}, {torch.__version__}")
    if bench.gpu:
        about = torch.cuda.get_device_properties(bench.device)
        bench.tell("card", f"{about.name}, {about.multi_processor_count} SMs, {about.total_memory / 2**30:.0f} GiB")
        bench.tell("CUDA, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}")  # type: ignore[no-untyped-call]
    for name in ("fp32", "tf32", "bf16"):
        bench.tell(f"matrix product, {name}", f"{product_rate(bench, name) / 1e12:.3g} TFLOP/s")
    size = 2**20 if bench.small else 2**30
    here, there = torch.empty(size, dtype=torch.uint8), torch.empty(size, dtype=torch.uint8, device=bench.device)
    copies = {"from pageable memory": here, "on the device": torch.empty_like(there)}
    if bench.gpu:
        copies["from pinned memory"] = here.pin_memory()
    for name, source in copies.items():
        rate = size / min(bench.seconds(lambda source=source: there.copy_(source)) for _ in range(5))  # type: ignore[misc]
        bench.tell(f"copy {name}", f"{rate / 1e9:.3g} GB/s")


def product_rate(bench: Bench, precision: str) -> float:
    """Return the operations per second of a large matrix product."""
    use_tf32(precision == "tf32")
    side = 512 if bench.small else 8192
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(side, side, device=bench.device, dtype=dtype) for _ in range(2))
    bench.seconds(lambda: left @ right)
    return 2 * side**3 / statistics.median(bench.seconds(lambda: left @ right) for _ in range(9))


def parity(bench: Bench) -> None:
    """Scores and training steps against what mmaction2's code computed in double precision."""
    for case, config in list(CASES.items())[: 1 if bench.small else 2]:
        weights, recorded = reference(case)
        with torch.device("meta"):
            model = build_model(config)
        model = model.to_empty(device=bench.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        load_weights(model, weights)
        raw = noise(recorded["clips"])
        clips = (raw[:, 0] if raw.ndim == 6 else raw.transpose(1, 2)).to(bench.device)
        expected = torch.tensor(recorded["logits"], dtype=torch.float64)
        limits = {"fp32": 1e-4} if bench.small else {"fp32": 1e-4, "tf32": 2e-3, "bf16": 3e-2}
        for precision, limit in limits.items():
            use_tf32(precision == "tf32")
            model.eval()
            with torch.no_grad(), torch.autocast(clips.device.type, torch.bfloat16, enabled=precision == "bf16"):
                found = model(clips).action.double().cpu()
            error = ((found - expected).abs().max() / expected.abs().max()).item()
            bench.require(f"{case}, scores in {precision}", error, limit)
            same = bool((found.argmax(1) == expected.argmax(1)).all())
            bench.tell(f"{case}, top-1 in {precision}", "the same" if same else "another", "the same", passed=same)
        if not bench.small:
            bench.require(f"{case}, losses of three steps in fp32", loss_error(model, clips, recorded), 1e-3)


def loss_error(model: Recognizer, clips: Tensor, recorded: dict[str, Any]) -> float:
    """Return the largest relative error of the losses of three steps of SGD."""
    use_tf32(False)
    labels = torch.tensor(recorded["labels"], device=clips.device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    errors = []
    model.train()
    for expected in recorded["train_steps"]:
        scores = model(clips)
        loss = F.cross_entropy(scores.action, labels) + 0.5 * F.cross_entropy(scores.auxiliary[0], labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 40)
        optimizer.step()
        errors.append(abs(loss.item() / float(expected["total"]) - 1))
    return max(errors[:2])  # by the third step, float32 runs of the published code differ from each other


def convolutions(bench: Bench) -> None:
    """One convolution of each kind in bf16 against float32, at the shapes of training."""
    frames, px = bench.clip
    model = build_model(bench.model).to(bench.device)
    report = convolution_self_test(model, (2 if bench.small else 8, 3, frames, px, px))
    # CPUs' bf16 convolutions are wrong on some machines; a run there falls back to float32.
    passed = report.trusted if bench.gpu else None
    bench.tell("bf16 convolutions", str(report), f"off by at most {TOLERANCE:.0%}", passed)


# --- the same bits


def trained(bench: Bench, precision: str, *, compiled: bool = False, ordered: bool = False) -> Training:
    """Return a training in deterministic mode."""
    loop = LoopConfig(
        batch_clips=12,
        micro_batch_clips=4,
        precision=precision,  # type: ignore[arg-type]
        deterministic=True,
        compile=compiled,
        ordered_reduction=ordered,
    )
    return Training(bench.model, LossConfig(), OptimConfig(lr=0.01, ema_decay=0.9), loop, bench.device)


def batches(bench: Bench, step: int) -> list[MicroBatch]:
    """Return the micro-batches of a step: from the second step on, one lacks a clip and one has none."""
    frames, px = bench.clip
    random = torch.Generator().manual_seed(step)
    made = []
    for number, size in enumerate((4, 3, 0) if step else (4, 4, 4)):
        clips = torch.randint(256, (4, frames, px, px, 3), dtype=torch.uint8, generator=random)[:size]
        labels = torch.randint(5, (4, 1), generator=random)[:size]
        made.append(MicroBatch(number, clips.to(bench.device), labels.to(bench.device)))
    return made


def digest(training: Training) -> str:
    """Hash weights, statistics, average, and momenta."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                add(value[key])
        elif isinstance(value, list | tuple):
            for one in value:
                add(one)

    add(training.state())
    return found.hexdigest()[:16]


def bits(bench: Bench) -> None:
    """Six steps, against three steps, SIGKILL, and three more from what was saved."""
    variants = [("fp32", False)] if bench.small else [("fp32", False), ("bf16", False), ("bf16", True)]
    for precision, compiled in variants:
        name = f"{precision} {'compiled' if compiled else 'eager'}"
        whole = trained(bench, precision, compiled=compiled)
        for step in range(6):
            whole.train_step(batches(bench, step), 10)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "state.pt")
            command = [sys.executable, "-m", "benchmarks.device_sections", "killed", bench.device, str(file)]
            ended = subprocess.run([*command, str(int(bench.small)), precision, str(int(compiled))], check=False)
            killed = ended.returncode == -signal.SIGKILL
            bench.tell(f"{name}, killed after three steps", str(killed), "True", passed=killed)
            weights, rest = torch.load(file, map_location=bench.device, weights_only=True)
        again = trained(bench, precision, compiled=compiled)
        again.load(weights, rest, 3)
        for step in range(3, 6):
            again.train_step(batches(bench, step), 10)
        found, expected = digest(again), digest(whole)
        bench.tell(f"{name}, resumed", found, expected, passed=found == expected)


def killed(bench: Bench, precision: str, compiled: bool) -> None:
    """Train three steps, save, and die as a process that is killed."""
    training = trained(bench, precision, compiled=compiled)
    for step in range(3):
        training.train_step(batches(bench, step), 10)
    torch.save(training.state(), bench.results)
    os.kill(os.getpid(), signal.SIGKILL)


def workers(bench: Bench) -> None:
    """Two processes on one device, whose ordered reduction gives the bits of one; and NCCL alone."""
    alone = trained(bench, "fp32", ordered=True)
    for step in range(3):
        alone.train_step(batches(bench, step), 10)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.device_sections", "rank", bench.device, folder]
        ranks = [subprocess.Popen([*command, str(int(bench.small)), str(rank)]) for rank in range(2)]
        for process in ranks:
            process.wait(50)
        found = [Path(folder, str(rank)).read_text() for rank in range(2)]
    expected = digest(alone)
    bench.tell("two workers, ordered reduction", " ".join(found), expected, passed=found == [expected] * 2)
    if bench.gpu:
        with tempfile.NamedTemporaryFile() as file:
            dist.init_process_group("nccl", init_method=f"file://{file.name}-nccl", rank=0, world_size=1)
            value = torch.ones(4, device=bench.device)
            dist.all_reduce(value)
            told = [{"a": 1}]
            dist.broadcast_object_list(told, src=0, device=torch.device(bench.device))
            dist.new_group([0])
            dist.destroy_process_group()
        bench.tell("NCCL alone", "works", "works", passed=value.sum().item() == 4)


def rank(bench: Bench, number: int) -> None:
    """One of two workers."""
    dist.init_process_group("gloo", init_method=f"file://{bench.results}/meeting", rank=number, world_size=2)
    training = trained(bench, "fp32", ordered=True)
    for step in range(3):
        training.train_step([one for one in batches(bench, step) if one.number % 2 == number], 10)
    Path(bench.results, str(number)).write_text(digest(training))
    dist.destroy_process_group()


# --- speed


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


def in_turns(bench: Bench, acts: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each act in every round, after two to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in acts}
    for turn in range(-2, rounds):
        for name, act in acts.items():
            spent = bench.seconds(act)
            if turn >= 0:
                seconds[name].append(spent)
    return seconds


@torch.inference_mode()
def inference(bench: Bench) -> None:
    """The views of a video: in float32, in bf16, and compiled."""
    views, frames, px = (2, 4, 32) if bench.small else (30, 8, 256)
    model = build_model(bench.model).to(bench.device).eval()
    torch.nn.init.normal_(model.head.linear.weight)  # type: ignore[union-attr, arg-type]
    clips = torch.randn(views, 3, frames, px, px, device=bench.device).contiguous(memory_format=torch.channels_last_3d)

    def score(network: nn.Module, precision: str) -> Tensor:
        use_tf32(precision == "tf32")
        with torch.autocast(clips.device.type, torch.bfloat16, enabled=precision == "bf16"):
            scores: Tensor = network(clips).action.float().softmax(1).mean(0)
        return scores

    acts: dict[str, Callable[[], Tensor]] = {"fp32": lambda: score(model, "fp32")}
    if bench.gpu:
        compiled = torch.compile(model)
        acts |= {
            "tf32": lambda: score(model, "tf32"),
            "bf16": lambda: score(model, "bf16"),
            "bf16 compiled": lambda: score(compiled, "bf16"),  # type: ignore[arg-type]
        }
    exact = acts["fp32"]()
    seconds = in_turns(bench, acts, rounds=2 if bench.small else 5)
    rate = product_rate(bench, "bf16")
    for name, values in seconds.items():
        videos = 1 / statistics.median(values)
        bench.tell(f"videos of {views} views, {name}", f"{videos:.1f} videos/s")
        bench.require(f"largest error of a probability, {name}", (acts[name]() - exact).abs().max().item(), 1e-2)
        if name == "bf16 compiled":
            bench.speed("share of the matrix product", SCORING_FLOPS * views * videos / rate, 0.35)


def develop_clips(bench: Bench) -> None:
    """Pixels developed on the device against those developed on the CPU, and their speed."""
    count, frames, px = (4, 4, 32) if bench.small else (64, 8, 224)
    notes, begin = list[Note](), 0
    for i in range(count):
        high, wide = px + 2 * (i % 20), px + 10 + 2 * (i % 7)
        notes.append(
            NO_CLIP._replace(
                kind=PLANES,
                begin=begin,
                frames=frames,
                height=high,
                width=wide,
                crop_height=high - i % 3,
                crop_width=wide - i % 5,
                mirrored=bool(i % 2),
                matrix=1,
                jitter=((1.0, 0.1, 0.0), (0.0, 0.9, 0.0), (0.05, 0.0, 1.0)),
                grey_share=0.1,
            )
        )
        begin += frames * (high * wide + 2 * ((high + 1) // 2) * ((wide + 1) // 2))
    stored = torch.randint(256, (begin,), dtype=torch.uint8)
    expected, there = develop(stored, notes, px), stored.to(bench.device)
    found = develop(there, notes, px).cpu()
    differing = int((found != expected).sum())
    bench.tell("pixels unlike the CPU's", str(differing), "0", passed=differing == 0)
    seconds = statistics.median(bench.seconds(lambda: develop(there, notes, px)) for _ in range(5))
    bench.tell(f"development of {count} clips", f"{seconds * 1000:.1f} ms")


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "environment": environment,
    "parity": parity,
    "convolutions": convolutions,
    "bits": bits,
    "waits": waits,
    "training": training,
    "inference": inference,
    "develop": develop_clips,
    "workers": workers,
}


def main() -> None:
    section, device, results, small, *rest = sys.argv[1:]
    bench = Bench(section, device, Path(results), small == "1")
    if not bench.gpu:
        torch.set_num_threads(1)
    if section == "killed":
        killed(bench, rest[0], rest[1] == "1")
    elif section == "rank":
        rank(bench, int(rest[0]))
    else:
        SECTIONS[section](bench)


if __name__ == "__main__":
    main()
