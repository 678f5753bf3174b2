"""Measures the decoding cost of several trials that see the same clips, relative to a single trial. Runs without Ray.

It runs on the driver. Trials are processes that take the same blocks in the same order, as Ray Data's tasks do for
them. Costs are the CPU time of all of them; rounds alternate between a single trial and all trials together.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass

from tpn_ray.clips.augment import AugmentConfig
from tpn_ray.clips.sampling import ClipConfig
from tpn_ray.data import tasks
from tpn_ray.data.plan import Plan
from tpn_ray.data.share import Shelf
from tpn_ray.data.tasks import ClipSource
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.errors import ConfigError

LIMIT_BYTES = 4 * 10**9
ROUND_SECONDS = 3600.0
"""Timeout of one round of decoding."""


@dataclass(frozen=True, kw_only=True)
class ShareBench:
    """What to measure."""

    data: str
    """Dataset, as jobs/train.py takes it."""

    trials: int = 4
    """Number of concurrent trials."""

    frames: int = 8
    """Number of frames in a clip."""

    stride_frames: int = 8
    """Distance between the frames of a clip, in frames of the video."""

    crop_px: int = 224
    """Height and width of the network's input, in pixels."""

    micro_batch_clips: int = 8
    """Number of clips in a block."""

    blocks: int = 24
    """Number of blocks that every trial takes in a round."""

    rounds: int = 5
    """Number of times everything is measured."""

    def __post_init__(self) -> None:
        for field in ("trials", "micro_batch_clips", "blocks", "rounds"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field}={getattr(self, field)} must be at least 1")


@dataclass(frozen=True)
class ShareReport:
    """The measurements of a run."""

    trials: int
    ratios: tuple[float, ...]
    """CPU time of all trials together, relative to that of a single one, by round."""

    def __str__(self) -> str:
        low, high = min(self.ratios), max(self.ratios)
        return (
            f"decoding for {self.trials} trials that share costs {statistics.median(self.ratios):.2f} times "
            f"({low:.2f}-{high:.2f}) that of one alone; without sharing it costs {self.trials} times"
        )


def measure_share(bench: ShareBench) -> ShareReport:
    """Measure one trial without a shelf and all of them with a new one, in turns."""
    source = ClipSource(
        manifest=load_manifest(bench.data).select("train"),
        clip=ClipConfig(frames=bench.frames, stride_frames=bench.stride_frames),
        augment=AugmentConfig(crop_px=bench.crop_px, test_short_side_px=max(256, bench.crop_px)),
        seed=0,
    )
    ratios = []
    with ProcessPoolExecutor(bench.trials, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(_together(pool, source, bench, ""))  # all have started
        for _ in range(bench.rounds):
            alone = pool.submit(take, source, bench, "").result(ROUND_SECONDS)
            with tempfile.TemporaryDirectory() as folder:
                together = sum(_together(pool, source, bench, folder))
            ratios.append(together / alone)
    return ShareReport(bench.trials, tuple(ratios))


def _together(pool: Executor, source: ClipSource, bench: ShareBench, folder: str) -> Iterator[float]:
    every = bench.trials
    return pool.map(take, [source] * every, [bench] * every, [folder] * every, timeout=ROUND_SECONDS)


def take(source: ClipSource, bench: ShareBench, folder: str) -> float:
    """Return the CPU seconds of this process for all blocks, from the shelf in `folder` or, without one, made here."""
    plan = make_plan(source, bench)
    begin = time.process_time()
    for index in range(bench.blocks):
        micro_batches = [plan.slot(index, 1)]
        if folder:
            shelf = Shelf(limit_bytes=LIMIT_BYTES, folder=folder)
            shelf.get(str(index), lambda taken=micro_batches: tasks.training_rows(source, taken))  # type: ignore[misc]
        else:
            tasks.training_rows(source, micro_batches)
    return time.process_time() - begin


def make_plan(source: ClipSource, bench: ShareBench) -> Plan:
    """Make a plan with as many epochs as the blocks need, each step having one micro-batch."""
    steps = len(source.manifest) // bench.micro_batch_clips
    if not steps:
        raise ConfigError(f"{len(source.manifest)} training videos do not fill a block of {bench.micro_batch_clips}")
    return Plan(
        samples=len(source.manifest),
        seed=0,
        epochs=-(-bench.blocks // steps),
        batch_clips=bench.micro_batch_clips,
        micro_batch_clips=bench.micro_batch_clips,
    )
