"""Measurements on the nodes: decoding, a training step, and preparing. Runs in Ray tasks; takes plain values."""

from __future__ import annotations

import resource
import statistics
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch

from tpn_ray.clips import decoding, rows
from tpn_ray.clips.decoding import decoder_of
from tpn_ray.data import tasks
from tpn_ray.data.plan import Plan
from tpn_ray.data.tasks import ClipSource
from tpn_ray.datasets import reader
from tpn_ray.errors import BadVideo
from tpn_ray.planning.figures import Preparing, Span
from tpn_ray.planning.step_time import rehearse, time_scoring, time_training
from tpn_ray.recipe import Recipe
from tpn_ray.sandbox.process import Sandbox, SandboxLimits
from tpn_ray.videos.encode import EncodeConfig, prepare_plain
from tpn_ray.videos.packets import DecodeLimits

STATE_COPIES = 2
"""Copies of the weights that only a real run holds: gradient buckets, and the copy being saved."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Blocks made by one decoding process."""

    seconds_per_block: float
    block_bytes: float
    peak_bytes: float
    """Peak memory of the process, including whatever it held before."""
    bad_videos: int


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """Measurements of a network's training step in one process."""

    clips_per_second: Span
    score_clips_per_second: float
    peak_bytes: float
    peak_gpu_bytes: float


def decode(source: ClipSource, plan: Plan, seconds: float) -> Decoded:
    """Make blocks for `seconds`, and at least two; the first is not counted."""
    spent, sizes, bad, begun = list[float](), list[int](), 0, time.perf_counter()
    for number in range(plan.blocks(1)):
        begin = time.perf_counter()
        block = tasks.training_rows(source, plan.block(number, 1))
        spent.append(time.perf_counter() - begin)
        sizes.append(sum(column.nbytes for column in block.values()))
        bad += int((block[rows.REASON] != "").sum())
        if len(spent) > 1 and time.perf_counter() - begun > seconds:
            break
    return Decoded(
        seconds_per_block=statistics.median(spent[1:] or spent),
        block_bytes=max(sizes),
        peak_bytes=peak_bytes(),
        bad_videos=bad,
    )


def step(recipe: Recipe, device: str, threads: int, rounds: int) -> Stepped:
    """Measure training and scoring of one micro-batch, after a warm-up round that is not counted."""
    torch.set_num_threads(threads)
    training, batch = rehearse(recipe, device)
    seconds = [(time_training(training, batch), time_scoring(training, batch)) for _ in range(1 + rounds)][1:]
    train, score = zip(*seconds, strict=True)
    clips = len(batch.clips)
    weights = STATE_COPIES * sum(one.numel() * one.element_size() for one in training.model.parameters())
    on_gpu = torch.device(device).type == "cuda"
    return Stepped(
        clips_per_second=Span(clips / max(train), clips / statistics.median(train), clips / min(train)),
        score_clips_per_second=clips / statistics.median(score),
        peak_bytes=peak_bytes() + weights,
        peak_gpu_bytes=torch.cuda.max_memory_allocated() + weights if on_gpu else 0,
    )


def prepare_some(source: ClipSource, config: EncodeConfig, wanted_seconds: float) -> Preparing | None:
    """Prepare the first videos for `wanted_seconds`, and decode a clip of each in both forms. None if none is
    usable."""
    ratios, encoding = list[float](), list[float]()
    before, after, begun = 0, 0, time.perf_counter()
    decode = partial(decoder_of(prepared=False), decoding.clip_seconds)
    with closing(Sandbox(SandboxLimits())) as sandbox:
        for sample in (0, *range(len(source.manifest))):  # the first twice: starting the child is not counted
            warm, used = sandbox.cpu_seconds > 0, sandbox.cpu_seconds
            try:
                data = reader.fetch(source.manifest, sample)
                made = sandbox.call(prepare_plain, data, None, config, DecodeLimits())
                spent = sandbox.cpu_seconds - used
                seconds = [decode(video, source.clip, source.developed) for video in (data, made["video"])]
            except BadVideo:
                continue
            if not warm:
                continue
            ratios.append(seconds[0] / seconds[1])
            encoding.append(spent)
            before, after = before + len(data), after + len(made["video"])
            if time.perf_counter() - begun > wanted_seconds:
                break
    if not ratios:
        return None
    return Preparing(
        videos=len(ratios),
        speedup=Span(min(ratios), statistics.median(ratios), max(ratios)),
        bytes_share=after / before,
        core_seconds_per_video=Span(min(encoding), statistics.fmean(encoding), max(encoding)),
    )


def peak_bytes() -> float:
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
