"""Speed at which training clips reach a training worker through Ray Data, per decoding task. Runs on the driver."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from itertools import islice

import ray

from tpn_ray.clips import rows
from tpn_ray.clips.rows import Rows
from tpn_ray.data import dataset
from tpn_ray.data.plan import BLOCK_CLIPS, Plan
from tpn_ray.data.tasks import ClipSource
from tpn_ray.errors import ConfigError
from tpn_ray.resources import Decoding

WARM_UP_BLOCKS = 2
"""Blocks that are not counted, during which processes start and connections open."""


def plan_for(samples: int, micro_batch_clips: int, blocks: int) -> Plan:
    """Plan a run of steps of one micro-batch each, long enough to measure `blocks` blocks."""
    if samples < micro_batch_clips:
        raise ConfigError(f"{samples} training videos do not fill a micro-batch of {micro_batch_clips}")
    # Blocks are made ahead of the one being read, and must not run out before the counting ends.
    steps = 2 * (WARM_UP_BLOCKS + blocks) * max(1, BLOCK_CLIPS // micro_batch_clips)
    return Plan(
        samples=samples,
        seed=0,
        epochs=math.ceil(steps / (samples // micro_batch_clips)),
        batch_clips=micro_batch_clips,
        micro_batch_clips=micro_batch_clips,
    )


def through_ray(source: ClipSource, plan: Plan) -> Iterator[Rows]:
    """Yield blocks as a Train worker gets them, made by one task at a time. The startup of the next task counts too."""
    clips = dataset.training_clips(ray.put(source), plan, 1, 0, Decoding(cpus=1, tasks=1))
    (shard,) = clips.streaming_split(1, equal=True)
    blocks: Iterable[Rows] = shard.iter_batches(batch_size=None, prefetch_batches=2)
    return iter(blocks)


def clips_per_second(stream: Iterator[Rows], blocks: int) -> tuple[float, int, int]:
    """Return the wall-clock speed of `blocks` blocks after the warm-up, their bytes of pixels, and their bad videos."""
    for _ in islice(stream, WARM_UP_BLOCKS):
        pass
    pixels = bad = clips = 0
    begin = time.perf_counter()
    for block in islice(stream, blocks):
        pixels += block[rows.PIXELS if rows.PIXELS in block else rows.CLIP].nbytes
        bad += int((block[rows.REASON] != "").sum())
        clips += len(block[rows.SAMPLE])
    return clips / (time.perf_counter() - begin), pixels, bad
