"""Section of `benchmarks.device`: how many clips the CPUs of this machine decode. Needs PyAV and, but for the network,
nothing of the device."""

from __future__ import annotations

import importlib.util
import io
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor

from benchmarks.device_bench import Bench
from tpn_ray.clips.augment import AugmentConfig
from tpn_ray.clips.sampling import ClipConfig

NEEDED_CLIPS_PER_SECOND = 465.0
"""What a GPU trains at the least: 0.2 of an H100's matrix product."""


def decoding(bench: Bench) -> None:
    """Clips of a raw and of a prepared video, decoded by one process and by one on each core."""
    if importlib.util.find_spec("av") is None:
        bench.tell("decoding", "PyAV is not here; install its wheel to measure it")
        return
    from tests.videos.videos import encode
    from tpn_ray.videos.encode import EncodeConfig, prepare_video
    from tpn_ray.videos.packets import DecodeLimits

    frames, size, seconds = (70, (48, 64), 0.2) if bench.small else (300, (256, 340), 6.0)
    raw = encode(frames=frames, size=size, gop=250, b_frames=3)
    prepared = prepare_video(io.BytesIO(raw), None, EncodeConfig(), DecodeLimits()).video
    cores = len(os.sched_getaffinity(0))
    fork = multiprocessing.get_context("fork")  # nothing has used the GPU in this process
    for name, data in (("raw", raw), ("prepared", prepared)):
        for processes in (1, 2 if bench.small else cores):
            with ProcessPoolExecutor(processes, mp_context=fork) as pool:
                speed = sum(pool.map(_clips_per_second, [data] * processes, [seconds] * processes))
            bench.tell(f"{name}, {processes} process(es)", f"{speed:.0f} clips/s")
        if not bench.small:
            bench.tell(
                f"cores for {NEEDED_CLIPS_PER_SECOND:g} clips/s, {name}",
                f"{cores * NEEDED_CLIPS_PER_SECOND / speed:.1f}",
            )


def _clips_per_second(data: bytes, seconds: float) -> float:
    """Decode random clips for some seconds, handed over as for a GPU."""
    from tpn_ray.clips.decoding import training_clips

    def make(number: int) -> None:
        training_clips(data, ClipConfig(), AugmentConfig(), (0, 0, number, 0), False)

    make(0)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        count += 1
        make(count)
    return count / (time.perf_counter() - begin)
