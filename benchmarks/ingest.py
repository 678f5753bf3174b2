"""Measures how fast training clips get from storage to the training worker, stage by stage. Runs on the driver.

Stages are measured in CPU time per clip of one core. Ray Data, end to end, is measured in wall-clock time, alternating
with one process without Ray that decodes the same clips: from bytes in memory (decode-only), and from storage.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tpn_ray.clips import augment, sampling
from tpn_ray.clips.augment import AugmentConfig
from tpn_ray.clips.rows import Rows
from tpn_ray.clips.sampling import ClipConfig
from tpn_ray.data import tasks
from tpn_ray.data.plan import Plan
from tpn_ray.data.tasks import ClipSource
from tpn_ray.datasets import reader
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.errors import BadVideo, ConfigError
from tpn_ray.planning.ingest import WARM_UP_BLOCKS, clips_per_second, plan_for, through_ray
from tpn_ray.videos.decode import open_video

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class IngestBench:
    """What to measure."""

    data: str
    """Dataset, as jobs/train.py takes it: a prepared folder, a folder of videos, or a CSV; local or s3://."""

    frames: int = 8
    """Number of frames in a clip."""

    stride_frames: int = 8
    """Distance between the frames of a clip, in frames of the video."""

    crop_px: int = 224
    """Height and width of the network's input, in pixels."""

    micro_batch_clips: int = 8
    """Number of clips in a micro-batch; a block holds several micro-batches."""

    blocks: int = 12
    """Number of blocks measured in each round."""

    rounds: int = 5
    """Number of times everything is measured."""

    device: str = "cuda"
    """Device that the clips are for: cuda takes them as decoded, cpu augmented."""

    gpu_clips_per_second: float = 800.0
    """Training speed of one GPU in clips per second, as measured by jobs/bench.py step."""

    address: str | None = None
    """Ray cluster to join; by default RAY_ADDRESS, otherwise a local Ray is started."""

    json: str = ""
    """File to write the results to."""

    def __post_init__(self) -> None:
        for field in ("micro_batch_clips", "blocks", "rounds", "gpu_clips_per_second"):
            if getattr(self, field) <= 0:
                raise ConfigError(f"{field}={getattr(self, field)} must be above 0")
        if self.json and not Path(self.json).expanduser().parent.is_dir():
            raise ConfigError(f"json={self.json!r}: its folder is not there; make it first")
        if self.device not in ("cuda", "cpu"):
            raise ConfigError(f"device={self.device!r} must be cuda or cpu")


@dataclass(frozen=True)
class IngestReport:
    """The measurements of a run."""

    clips_per_second_per_core: dict[str, float]
    """Clips per CPU second by stage; no stage includes another's work, except the last."""
    end_to_end_over_decode_only: float
    """Speed of Ray Data, from storage to the worker with one decoding task at a time, relative to one process without
    Ray that holds the bytes; wall-clock time, median of the rounds."""
    spread: tuple[float, float]
    end_to_end_over_one_process: float
    """The same relative to one process that also fetches the bytes."""
    one_process_spread: tuple[float, float]
    ray_clips_per_second: float
    cores_per_gpu: int
    gpu_clips_per_second: float
    bytes_per_clip: float
    """Size of a clip's pixels, which pass through the object store."""
    bad_videos: int

    def __str__(self) -> str:
        lines = [f"{'clips/s per core':40}"]
        lines += [f"  {name:38}{value:10.1f}" for name, value in self.clips_per_second_per_core.items()]
        (low, high), (least, most) = self.spread, self.one_process_spread
        lines += [
            f"Ray Data, one decoding task at a time, to the worker: {self.ray_clips_per_second:.1f} clips/s",
            f"  {self.end_to_end_over_decode_only:.2f} ({low:.2f}-{high:.2f}) of decoding alone, bytes in memory",
            f"  {self.end_to_end_over_one_process:.2f} ({least:.2f}-{most:.2f}) of one process that fetches as well",
            f"a GPU that trains on {self.gpu_clips_per_second:g} clips/s needs {self.cores_per_gpu} decoding cores "
            f"and takes {self.bytes_per_clip * self.gpu_clips_per_second / 1e6:.0f} MB/s of pixels",
        ]
        if self.bad_videos:
            lines.append(f"{self.bad_videos} clips were of bad videos")
        return "\n".join(lines)


def measure_ingest(bench: IngestBench) -> IngestReport:
    """Measure the stages in this process, then Ray Data and the same without Ray in turns. Ray must be connected."""
    manifest = load_manifest(bench.data).select("train")
    source = ClipSource(
        manifest=manifest,
        clip=ClipConfig(frames=bench.frames, stride_frames=bench.stride_frames),
        augment=AugmentConfig(crop_px=bench.crop_px, test_short_side_px=max(256, bench.crop_px)),
        seed=0,
        developed=bench.device == "cpu",
    )
    plan = plan_for(len(source.manifest), bench.micro_batch_clips, bench.blocks)
    stages = measure_stages(source, plan, bench)
    speeds: dict[str, list[float]] = {"decode only": [], "one process": [], "Ray Data": []}
    pixels, bad, held = 0, 0, fetched_for(source, plan, bench)
    for _ in range(bench.rounds):
        for name, stream in (
            ("decode only", without_ray(source, plan, lambda _, sample: held[sample])),
            ("one process", without_ray(source, plan, reader.fetch)),
            ("Ray Data", through_ray(source, plan)),
        ):
            speed, pixels, bad = clips_per_second(stream, bench.blocks)
            speeds[name].append(speed)
    against_decoding, spread = ratio(speeds["Ray Data"], speeds["decode only"])
    against_process, process_spread = ratio(speeds["Ray Data"], speeds["one process"])
    speed = statistics.median(speeds["Ray Data"])
    report = IngestReport(
        clips_per_second_per_core=stages,
        end_to_end_over_decode_only=against_decoding,
        spread=spread,
        end_to_end_over_one_process=against_process,
        one_process_spread=process_spread,
        ray_clips_per_second=speed,
        cores_per_gpu=math.ceil(bench.gpu_clips_per_second / speed),
        gpu_clips_per_second=bench.gpu_clips_per_second,
        bytes_per_clip=pixels / (bench.blocks * plan.micro_batches_per_block * plan.micro_batch_clips),
        bad_videos=bad,
    )
    if bench.json:
        Path(bench.json).expanduser().write_text(json.dumps(asdict(report), indent=1) + "\n")
    return report


def ratio(speeds: list[float], base: list[float]) -> tuple[float, tuple[float, float]]:
    """Return the median of the rounds' ratios, and their range."""
    rounds = [one / other for one, other in zip(speeds, base, strict=True)]
    return statistics.median(rounds), (min(rounds), max(rounds))


# --- stages


def measure_stages(source: ClipSource, plan: Plan, bench: IngestBench) -> dict[str, float]:
    """Measure clips per second of CPU time, stage by stage, on the clips of some micro-batches."""
    blocks = [plan.block(index, 1) for index in range(bench.blocks)]
    samples = np.concatenate([micro_batch.samples for block in blocks for micro_batch in block])
    seconds: dict[str, list[float]] = {}
    for _ in range(bench.rounds):
        data, spent = timed(lambda: [fetched(source, int(sample)) for sample in samples])
        videos = [one for one in data if one]
        seconds.setdefault("object store -> bytes", []).append(spent / len(samples))
        found = [(one, clip_indices(source, one)) for one in videos]
        usable = [(one, indices) for one, indices in found if indices is not None]
        if not usable:
            raise ConfigError("none of the first videos can be decoded; jobs/prepare.py says what is wrong with each")
        floors = [floor(one, indices) for one, indices in usable]
        seconds.setdefault("the floor: needed frames decoded", []).append(statistics.mean(floors))
        _, spent = timed(partial(decode_each, usable, source.developed))
        seconds.setdefault("bytes -> decoded", []).append(spent / len(usable))
        _, spent = timed(partial(deque, (tasks.training_rows(source, block) for block in blocks), 0))
        seconds.setdefault("all of it -> in the batch", []).append(spent / len(samples))
    return {name: 1 / statistics.median(values) for name, values in seconds.items()}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of the work and the CPU seconds it took, over all threads."""
    begin = time.process_time()
    result = work()
    return result, time.process_time() - begin


def fetched(source: ClipSource, sample: int) -> bytes:
    """Return a video's bytes, or none if it is missing."""
    try:
        return reader.fetch(source.manifest, sample)
    except BadVideo:
        return b""


def clip_indices(source: ClipSource, data: bytes) -> Indices | None:
    """Return the frames of a training clip; None for a bad video."""
    try:
        with open_video(data) as video:
            indices = sampling.train_indices(source.clip, video.frame_count, augment.generator(0, 0, len(data), 0))
            video.decode_only(indices)
            return indices
    except BadVideo:
        return None


def floor(data: bytes, indices: Indices) -> float:
    """Return the CPU seconds that libavcodec takes for the needed packets."""
    with open_video(data) as video:
        return timed(lambda: video.decode_only(indices))[1]


def decode_each(clips: list[tuple[bytes, Indices]], developed: bool) -> None:
    """Open the videos and decode the clips to pixels."""
    for data, indices in clips:
        with open_video(data) as video:
            if developed or video.planes(indices) is None:
                video.frames(indices)


# --- end to end


def fetched_for(source: ClipSource, plan: Plan, bench: IngestBench) -> dict[int, bytes]:
    """Return the bytes of the videos that one round needs, by row of the manifest."""
    blocks = [plan.block(index, 1) for index in range(WARM_UP_BLOCKS + bench.blocks)]
    samples = {int(sample) for block in blocks for micro_batch in block for sample in micro_batch.samples}
    return {sample: fetched(source, sample) for sample in samples}


def without_ray(source: ClipSource, plan: Plan, fetch: tasks.Fetch) -> Iterator[Rows]:
    """Yield blocks made by this process, one after the other."""
    return (tasks.training_rows(source, plan.block(index, 1), fetch) for index in range(plan.blocks(1)))
