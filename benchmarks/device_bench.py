"""Where a section of `benchmarks.device` runs, how it takes time, and where its results go. Torch only."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tpn_ray.model.precision import use_tf32
from tpn_ray.model.recognizer import ModelConfig


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


def product_rate(bench: Bench, precision: str) -> float:
    """Return the operations per second of a large matrix product."""
    use_tf32(precision == "tf32")
    side = 512 if bench.small else 8192
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(side, side, device=bench.device, dtype=dtype) for _ in range(2))
    bench.seconds(lambda: left @ right)
    return 2 * side**3 / statistics.median(bench.seconds(lambda: left @ right) for _ in range(9))


def in_turns(bench: Bench, acts: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each act in every round, after two to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in acts}
    for turn in range(-2, rounds):
        for name, act in acts.items():
            spent = bench.seconds(act)
            if turn >= 0:
                seconds[name].append(spent)
    return seconds
