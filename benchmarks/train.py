"""Measures training speed: Ray Train fed by Ray Data, against torchrun with a DataLoader. Runs on the driver.

Both sides take turns and do the same steps on the same clips (`step.py`, `data/tasks.py`): their losses must be equal.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.plain_run import Settings
from tpn_ray import storage
from tpn_ray.datasets.manifest import Manifest, load_manifest
from tpn_ray.errors import ConfigError, TrainingError
from tpn_ray.recipe import Recipe, replace_fields, to_plain
from tpn_ray.resources import Decoding, PerWorker
from tpn_ray.training.events import Committed, Event
from tpn_ray.training.machines import Machines
from tpn_ray.training.run import train
from tpn_ray.training.run_plan import make_plan, recipe_for
from tpn_ray.training.saving import Saving
from tpn_ray.training.step import Training
from tpn_ray.training.writer import copied

PLAIN_SECONDS = 1800
COPIES = 5


@dataclass(frozen=True, kw_only=True)
class TrainBench:
    """A run's speed on your data and machine, with and without Ray."""

    data: str
    """Dataset of jobs/prepare.py, or videos as for jobs/train.py, in a place that all nodes see."""

    workers: int = 2
    """Number of training processes."""

    cpus_per_worker: float = 1.0
    """CPUs and torch threads of each training process."""

    gpus_per_worker: float = 0.0
    """GPUs of each training process."""

    loaders: int = 1
    """Number of decoding processes: concurrent Ray Data tasks, and DataLoader workers of all training processes
    together."""

    epochs: int = 4
    """Length of each run in epochs."""

    rounds: int = 3
    """Number of times that both sides run."""

    address: str = ""
    """Ray cluster to join; by default RAY_ADDRESS, otherwise a local Ray."""

    json: str = ""
    """File to write the results to."""

    def __post_init__(self) -> None:
        for field in ("workers", "loaders", "epochs", "rounds"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field}={getattr(self, field)} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """Medians of the rounds, and the range of their ratios."""

    ray_clips_per_second: float
    plain_clips_per_second: float
    ray_over_plain: float
    spread: tuple[float, float]
    ray_waiting_for_data: float
    """Share of step time."""
    plain_waiting_for_data: float
    steps: int
    checkpoint_seconds: float = 0.0
    """Time that one checkpoint blocks a step: the copy of weights, momenta, and the rest; writing continues in the
    background."""

    def __str__(self) -> str:
        low, high = self.spread
        every = Saving().every_seconds
        return (
            f"Ray Train + Ray Data    {self.ray_clips_per_second:8.1f} clips/s, "
            f"waiting for data {self.ray_waiting_for_data:.0%}\n"
            f"torchrun + DataLoader   {self.plain_clips_per_second:8.1f} clips/s, "
            f"waiting for data {self.plain_waiting_for_data:.0%}\n"
            f"{self.ray_over_plain:.2f} times as fast ({low:.2f}-{high:.2f}); "
            f"the same losses in all {self.steps} steps on record\n"
            f"a checkpoint makes a step wait {1000 * self.checkpoint_seconds:.0f} ms: "
            f"{self.checkpoint_seconds / every:.3%} of the {every:g} s between two"
        )


Measured = Sequence[dict[str, float]]
"""Logged metrics in order: step, loss, clips_per_second, waiting_for_data."""


def measure_train(recipe: Recipe, bench: TrainBench) -> TrainReport:
    """Run both sides in turns. Raises TrainingError if their results differ."""
    manifest = load_manifest(bench.data)
    recipe = recipe_for(recipe, manifest)
    steps = make_plan(recipe, manifest).first_step(1) * bench.epochs
    changes = {"loop.epochs": bench.epochs, "loop.evaluate_every_epochs": bench.epochs}
    recipe = replace_fields(recipe, {**changes, "loop.log_every_steps": max(1, steps // 8)})
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(bench.rounds):
            plain = without_ray(recipe, bench, Path(folder))
            pairs.append((with_ray(recipe, manifest, bench, folder, f"round-{number}"), plain))
    for ray_side, plain_side in pairs:
        check_same(ray_side, plain_side)
    report = dataclasses.replace(compare(pairs), checkpoint_seconds=checkpoint_seconds(recipe, bench))
    if bench.json:
        storage.write_bytes(storage.absolute(bench.json), json.dumps(dataclasses.asdict(report), indent=1).encode())
    return report


def compare(pairs: Sequence[tuple[Measured, Measured]]) -> TrainReport:
    """Summarize the (Ray, plain) pair of each round."""
    ratios = [speed(ray_side) / speed(plain_side) for ray_side, plain_side in pairs]
    return TrainReport(
        ray_clips_per_second=statistics.median(speed(ray_side) for ray_side, _ in pairs),
        plain_clips_per_second=statistics.median(speed(plain_side) for _, plain_side in pairs),
        ray_over_plain=statistics.median(ratios),
        spread=(min(ratios), max(ratios)),
        ray_waiting_for_data=statistics.median(waiting(ray_side) for ray_side, _ in pairs),
        plain_waiting_for_data=statistics.median(waiting(plain_side) for _, plain_side in pairs),
        steps=len(pairs[0][0]),
    )


def checkpoint_seconds(recipe: Recipe, bench: TrainBench) -> float:
    """Measure the median time to copy everything that a checkpoint holds, on the network's device."""
    device = "cuda" if bench.gpus_per_worker and torch.cuda.is_available() else "cpu"
    training, times = Training(recipe.model, recipe.loss, recipe.optim, recipe.loop, device), list[float]()
    for parameter in training.trained:  # as after a step
        training.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    for _ in range(COPIES):
        begun = time.perf_counter()
        copied(training.state())
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def speed(measured: Measured) -> float:
    """Return clips per second after the first stretch, which includes startup; all stretches are equally long."""
    stretches = measured[1:] or measured
    return len(stretches) / sum(1 / stretch["clips_per_second"] for stretch in stretches)


def waiting(measured: Measured) -> float:
    """Return the share of time after the first stretch that the workers waited for clips."""
    stretches = measured[1:] or measured
    seconds = [1 / stretch["clips_per_second"] for stretch in stretches]
    waited = [stretch["waiting_for_data"] * time for stretch, time in zip(stretches, seconds, strict=True)]
    return sum(waited) / sum(seconds)


def check_same(ray_side: Measured, plain_side: Measured) -> None:
    """Raise TrainingError unless both sides have the same losses."""
    for one, other in zip(ray_side, plain_side, strict=True):
        if (one["step"], one["loss"]) != (other["step"], other["loss"]):
            raise TrainingError(
                f"the two sides did not compute the same: loss {one['loss']} at step {one['step']:.0f} with Ray, "
                f"{other['loss']} at step {other['step']:.0f} without"
            )


def with_ray(recipe: Recipe, manifest: Manifest, bench: TrainBench, folder: str, name: str) -> Measured:
    """Run training once through jobs/train.py's driver."""
    measured: list[dict[str, float]] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Committed):
            measured.extend({"step": metrics.step, **metrics.values} for metrics in event.history)

    machines = Machines(
        workers=bench.workers,
        per_worker=PerWorker(cpus=bench.cpus_per_worker, gpus=bench.gpus_per_worker),
        decoding=Decoding(tasks=bench.loaders),
    )
    train(recipe, manifest, machines, storage_uri=folder, name=name, on_event=on_event)
    return measured


def without_ray(recipe: Recipe, bench: TrainBench, folder: Path) -> Measured:
    """Run training once under torchrun."""
    out = folder / "measured.json"
    settings = Settings(
        recipe=to_plain(recipe),
        data=bench.data,
        threads=max(1, int(bench.cpus_per_worker)),
        loaders=-(-bench.loaders // bench.workers),
        gpu=bench.gpus_per_worker > 0,
        out=str(out),
    )
    (folder / "settings.json").write_text(json.dumps(dataclasses.asdict(settings)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(bench.workers)]
    command += ["-m", "benchmarks.plain_run", str(folder / "settings.json")]
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PLAIN_SECONDS, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise TrainingError("torchrun failed:\n  " + "\n  ".join(lines[-15:]))
    measured: list[dict[str, float]] = json.loads(out.read_text())
    return measured
