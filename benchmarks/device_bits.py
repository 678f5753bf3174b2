"""Sections of `benchmarks.device`: the same bits after a kill, and from two workers. Torch only."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from benchmarks.device_bench import Bench
from tpn_ray.recipe import LoopConfig, LossConfig, OptimConfig
from tpn_ray.training.step import MicroBatch, Training


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
