"""The one-minute measurement: decoding through Ray Data, a training step, and preparing. Runs on the driver."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from tpn_ray.data.dataset import configure_context
from tpn_ray.data.tasks import ClipSource
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import ConfigError, ResourceError
from tpn_ray.planning import ingest, probes
from tpn_ray.planning.figures import Hardware, Measured, Span, exactly
from tpn_ray.planning.probes import Stepped
from tpn_ray.recipe import Recipe
from tpn_ray.resources import PerWorker
from tpn_ray.training.run_plan import make_plan
from tpn_ray.videos.encode import EncodeConfig

DECODE_SHARE, PREPARE_SHARE, BLOCKS_SHARE = 0.15, 0.2, 0.4
"""Shares of the time for a first look at decoding, for preparing, and for decoding through Ray Data. The rest is for
the step."""
ROUNDS, STEP_ROUNDS = 3, 5
FEWEST_BLOCKS, MOST_BLOCKS = 2, 24
PATIENCE_SECONDS = 600.0
"""Longest wait for one part: a cluster may have to start a node first, and a large network is slow on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """How to measure."""

    seconds: float = 60.0
    """Approximate duration, not counting process startup."""

    step_clips_per_second: float = 0.0
    """Training speed of one worker, if this cluster does not yet have the planned GPUs; 0 measures it here."""

    def __post_init__(self) -> None:
        if self.seconds <= 0:
            raise ConfigError(f"seconds={self.seconds} must be above 0")
        if self.step_clips_per_second < 0:
            raise ConfigError(f"step_clips_per_second={self.step_clips_per_second} must not be negative")


def measure(
    recipe: Recipe, manifest: Manifest, hardware: Hardware, how: Measurement, *, say: Callable[[str], None]
) -> Measured:
    """Measure decoding, preparing, and a training step one after the other, with nothing else running."""
    check_possible(recipe, hardware, how, ray.cluster_resources())
    begun = time.monotonic()
    train = manifest.select("train")
    # As in a training job: GPUs take clips as decoded.
    source = ClipSource(
        manifest=train.showing(recipe.clip.modality),
        clip=recipe.clip,
        augment=recipe.augment,
        seed=recipe.loop.seed,
        developed=not hardware.per_worker.gpus,
    )
    say("decoding ...")
    plan = ingest.plan_for(len(train), recipe.loop.micro_batch_clips, MOST_BLOCKS)
    # Every task holds one core of some node, and measures that node.
    look = _get(
        _task(probes.decode),
        (source, plan, how.seconds * DECODE_SHARE),
        "a decoding task",
    )
    decoding = _through_ray(recipe, source, look.seconds_per_block, how.seconds * BLOCKS_SHARE)
    preparing = None
    if train.placement is None:
        say("preparing some videos ...")
        config = EncodeConfig(short_side_px=max(256, recipe.augment.test_short_side_px))
        preparing = _get(
            _task(probes.prepare_some),
            (source, config, how.seconds * PREPARE_SHARE),
            "preparing",
        )
    stepped = None
    if not how.step_clips_per_second:
        say("training steps ...")
        stepped = _step(recipe, hardware)
    epoch = make_plan(recipe, manifest)
    return Measured(
        decode_clips_per_second=decoding,
        decode_task_bytes=look.peak_bytes,
        block_bytes=look.block_bytes,
        step_clips_per_second=stepped.clips_per_second if stepped else exactly(how.step_clips_per_second),
        step_given=stepped is None,
        score_clips_per_second=stepped.score_clips_per_second if stepped else 0.0,
        worker_bytes=stepped.peak_bytes if stepped else 0.0,
        worker_gpu_bytes=stepped.peak_gpu_bytes if stepped else 0.0,
        train_clips=epoch.clips(epoch.first_step(1)),
        val_videos=len(manifest.select("val")),
        train_videos=len(train),
        prepared=train.placement is not None,
        preparing=preparing,
        seconds=time.monotonic() - begun,
    )


def check_possible(recipe: Recipe, hardware: Hardware, how: Measurement, total: dict[str, float]) -> None:
    """Refuse what no run can be, and what would wait forever on a cluster with resources `total`."""
    shares = recipe.loop.micro_batches_per_step
    if hardware.workers > shares:
        raise ConfigError(
            f"{hardware.workers} workers cannot share the {shares} micro-batches of a step: plan at most {shares} "
            "--workers, or smaller --loop.micro-batch-clips"
        )
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    needed = 1.0 if how.step_clips_per_second else max(1.0, hardware.per_worker.cpus)
    if cpus < needed:
        raise ResourceError(
            f"too few CPUs: measuring takes a task of {needed:g} CPUs, the cluster has {cpus:g}; add a node, or give "
            "smaller --cpus-per-worker"
        )
    if not how.step_clips_per_second and gpus < hardware.per_worker.gpus:
        raise ResourceError(
            f"a worker of {hardware.per_worker.gpus:g} GPUs cannot be measured: the cluster has {gpus:g}; add a node "
            "with GPUs, or give --step-clips-per-second (jobs/bench.py step measures it on such a machine)"
        )


def _through_ray(recipe: Recipe, source: ClipSource, seconds_per_block: float, seconds: float) -> Span:
    """Measure clips per second with one decoding task at a time, as a Train worker gets them."""
    fit = int(seconds / ROUNDS / max(seconds_per_block, 1e-6)) - ingest.WARM_UP_BLOCKS
    blocks = min(MOST_BLOCKS, max(FEWEST_BLOCKS, fit))
    plan = ingest.plan_for(len(source.manifest), recipe.loop.micro_batch_clips, blocks)
    configure_context(1.0)
    speeds = [ingest.clips_per_second(ingest.through_ray(source, plan), blocks)[0] for _ in range(ROUNDS)]
    return Span(min(speeds), statistics.median(speeds), max(speeds))


def _step(recipe: Recipe, hardware: Hardware) -> Stepped:
    each = hardware.per_worker
    device = "cuda" if each.gpus else "cpu"
    task = _task(probes.step, each)
    stepped: Stepped = _get(task, (recipe, device, each.threads, STEP_ROUNDS), "a training step")
    return stepped


def _task(function: Callable[..., Any], each: PerWorker | None = None) -> Any:
    """Wrap a function as a Ray task with its own process, whose memory no other task shares."""
    takes = each or PerWorker()
    alone = ray.remote(max_calls=1, max_retries=0)(function)
    return alone.options(num_cpus=takes.cpus, num_gpus=takes.gpus, resources=takes.custom)


def _get(task: Any, arguments: tuple[Any, ...], what: str) -> Any:
    reference = task.remote(*arguments)
    try:
        return ray.get(reference, timeout=PATIENCE_SECONDS)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(reference, force=True)
        raise ResourceError(
            f"{what} gave no results within {PATIENCE_SECONDS:g} s: other jobs may hold the cluster (ray status), or "
            "it is too slow here; give --step-clips-per-second for a network that this cluster cannot train"
        ) from None
    except ray.exceptions.RayTaskError as error:
        raise error.as_instanceof_cause() from None
    except ray.exceptions.RayError as error:
        raise ResourceError(f"{what} could not be measured: {str(error).splitlines()[0]}") from error
