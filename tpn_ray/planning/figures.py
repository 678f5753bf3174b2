"""The arithmetic of a plan: from measurements to cores, memory, nodes, hours, and prices. Pure; runs anywhere.

Every quantity is a span of its lowest, middle, and highest value. Measured spans cover their rounds, assumed ones cover
what is usual, and computed ones cover everything that their inputs allow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import tyro

from tpn_ray.errors import ConfigError
from tpn_ray.resources import PerWorker
from tpn_ray.tuning import rungs


class Span(NamedTuple):
    """Lowest, middle, and highest value."""

    low: float
    middle: float
    high: float

    def __truediv__(self, other: Span) -> Span:
        """Divide two positive spans."""
        return Span(self.low / other.high, self.middle / other.middle, self.high / other.low)

    def times(self, factor: float) -> Span:
        return Span(self.low * factor, self.middle * factor, self.high * factor)

    def plus(self, other: Span) -> Span:
        return Span(self.low + other.low, self.middle + other.middle, self.high + other.high)


def exactly(value: float) -> Span:
    """Return a span of a single value."""
    return Span(value, value, value)


def slower(one: Span, other: Span) -> Span:
    """Return the smaller of two speeds."""
    return Span(min(one.low, other.low), min(one.middle, other.middle), min(one.high, other.high))


EFFICIENCY = Span(0.75, 0.9, 1.0)
"""Assumed: share of a worker's speed that remains beside the optimizer, the all-reduce, checkpoints, and logging."""
START_SECONDS = Span(20.0, 60.0, 180.0)
"""Assumed: time from a run's command to its first step plus from its last step to its end; longer if nodes must
start."""
BLOCKS_PER_TASK = Span(2.0, 2.5, 3.0)
"""Assumed: blocks in the object store per decoding task, in the making and waiting."""
BLOCKS_PER_WORKER = exactly(3.0)
"""Blocks that a training worker holds: two prefetched and one in use."""
STORE_SHARE = 0.5
"""Share of the object store that Ray Data uses."""
STORE_FLOOR_BYTES = 500e6
RESERVED_CPUS = 1
"""Assumed: CPUs of each node reserved for Ray and the system."""
RESERVED_BYTES = 2e9


@dataclass(frozen=True, kw_only=True)
class Preparing:
    """Expected gain from jobs/prepare.py, measured on a few prepared videos."""

    videos: int
    """Number of videos tried."""
    speedup: Span
    """Clips decoded per second per core from prepared videos, relative to the videos as they are."""
    bytes_share: float
    """Size of the prepared videos, relative to the videos as they are."""
    core_seconds_per_video: Span


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measurements on the cluster, with the recipe's clips and network."""

    decode_clips_per_second: Span
    """Speed of one decoding core, from storage to the worker."""
    decode_task_bytes: float
    """Peak memory of a decoding process."""
    block_bytes: float
    """Size of one block of clips in the object store."""
    step_clips_per_second: Span
    """Speed of one worker: forward, loss, backward, and weight update."""
    step_given: bool
    """Whether the step speed was given by the user rather than measured."""
    score_clips_per_second: float
    """Speed of one worker in evaluation; 0 if not measured."""
    worker_bytes: float
    """Peak memory of a worker's process; 0 if not measured."""
    worker_gpu_bytes: float
    train_clips: int
    """Clips per epoch."""
    val_videos: int
    train_videos: int
    prepared: bool
    preparing: Preparing | None = None
    seconds: float = 0.0
    """Duration of the measurement."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The available machines, and their prices."""

    workers: int = 2
    """Training workers of a run, each with one copy of the network."""

    per_worker: Annotated[PerWorker, tyro.conf.arg(name="")] = field(default_factory=PerWorker)

    node_cpus: int = 16
    """Cores of each decoding node."""

    gpu_node_gpus: int = 1
    """GPUs of each training node."""

    gpu_node_cpus: int = 8
    """Cores of each training node."""

    price_gpu_hour: float = 0.0
    """Price per hour of one GPU with its share of the node; 0 leaves prices out."""

    price_cpu_hour: float = 0.0
    """Price per hour of one core of a decoding node."""

    def __post_init__(self) -> None:
        for name in ("workers", "node_cpus", "gpu_node_gpus", "gpu_node_cpus"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("price_gpu_hour", "price_cpu_hour"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
        if self.node_cpus <= RESERVED_CPUS:
            raise ConfigError(f"node_cpus={self.node_cpus}: {RESERVED_CPUS} is kept for Ray, so at least 2 are needed")
        if self.workers_per_node < 1:
            raise ConfigError(
                f"no worker of {self.per_worker.gpus:g} GPUs and {self.per_worker.cpus:g} CPUs fits a node of "
                f"gpu_node_gpus={self.gpu_node_gpus} and gpu_node_cpus={self.gpu_node_cpus}"
            )

    @property
    def workers_per_node(self) -> int:
        """Number of workers that fit on a training node."""
        each = self.per_worker
        if each.gpus:
            return min(int(self.gpu_node_gpus / each.gpus), _fit(self.gpu_node_cpus, each.cpus))
        return _fit(self.gpu_node_cpus - RESERVED_CPUS, each.cpus)


def _fit(has: float, takes: float) -> int:
    return math.floor(has / takes + 1e-9) if takes else 2**31


@dataclass(frozen=True, kw_only=True)
class Trials:
    """The campaign to plan, as for jobs/tune.py with successive halving."""

    samples: int = 16
    """Number of trials."""

    rungs: int = 3
    """Number of times that trials are compared, including at the end."""

    reduction_factor: int = 3
    """Ratio of the trials at a rung to those promoted from it."""

    min_promoted: int = 1
    """Minimum number of trials promoted."""

    max_concurrent: int = 1
    """Maximum number of concurrent trials, each on its own machines."""

    def __post_init__(self) -> None:
        for name in ("samples", "rungs", "min_promoted", "max_concurrent"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Number of nodes, and what each needs."""

    training: int
    decoding: int
    """Nodes that only decode."""
    decode_tasks: int
    """Concurrent decoding tasks over all nodes."""
    spare_cpus: int
    """Cores of each training node that decode there."""
    training_store_bytes: Span
    decoding_store_bytes: Span
    training_memory_bytes: Span
    decoding_memory_bytes: Span


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimated cost of a run or campaign."""

    hours: Span
    """Wall-clock time."""
    price: Span
    """Price; 0 if no price was given."""
    epochs: int


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The complete advice."""

    cores_per_worker: Span
    nodes: Nodes
    clips_per_second: Span
    """Speed of the whole run."""
    decoding_limits: bool
    """Whether decoding, rather than the workers, limits that speed."""
    epochs_per_hour: Span
    run: Estimate
    campaign: Estimate
    rungs: tuple[int, ...]
    """Epochs at which trials are compared."""


def advise(measured: Measured, hardware: Hardware, trials: Trials, *, epochs: int, evaluate_every: int) -> Advice:
    """Return the advice for a run of `epochs` epochs and a campaign of such runs."""
    cores = cores_per_worker(measured)
    nodes = nodes_for(measured, hardware, math.ceil(cores.high))
    speed, limits = speed_of(measured, hardware, nodes)
    epoch = epoch_seconds(measured, hardware, nodes, speed, evaluate_every)
    bracket = rungs.bracket(
        epochs, rungs=trials.rungs, reduction_factor=trials.reduction_factor, min_promoted=trials.min_promoted
    )
    trained, starts = rungs.planned([trials.samples], bracket)
    each = price_per_hour(hardware, nodes)
    return Advice(
        cores_per_worker=cores,
        nodes=nodes,
        clips_per_second=speed,
        decoding_limits=limits,
        epochs_per_hour=exactly(3600) / epoch,
        run=hours_of(epochs, 1, epoch, each, max_concurrent=1),
        campaign=hours_of(trained, starts, epoch, each, max_concurrent=min(trials.max_concurrent, trials.samples)),
        rungs=bracket.epochs,
    )


def cores_per_worker(measured: Measured) -> Span:
    """Return the decoding cores that keep one worker from waiting."""
    return measured.step_clips_per_second / measured.decode_clips_per_second


def nodes_for(measured: Measured, hardware: Hardware, cores: int) -> Nodes:
    """Return the nodes needed for all workers, with `cores` decoding cores per worker."""
    training = math.ceil(hardware.workers / hardware.workers_per_node)
    here = min(hardware.workers, hardware.workers_per_node)
    spare = max(0, math.floor(hardware.gpu_node_cpus - here * hardware.per_worker.cpus) - RESERVED_CPUS)
    needed = cores * hardware.workers
    tasks_here = min(spare, math.ceil(needed / training))
    elsewhere = max(0, needed - training * spare)
    decoding = math.ceil(elsewhere / (hardware.node_cpus - RESERVED_CPUS))
    tasks_there = math.ceil(elsewhere / decoding) if decoding else 0
    training_store = store_bytes(measured, tasks=tasks_here, workers=here)
    decoding_store = store_bytes(measured, tasks=tasks_there, workers=0)
    processes = here * measured.worker_bytes + tasks_here * measured.decode_task_bytes
    return Nodes(
        training=training,
        decoding=decoding,
        decode_tasks=needed,
        spare_cpus=spare,
        training_store_bytes=training_store,
        decoding_store_bytes=decoding_store,
        training_memory_bytes=training_store.plus(exactly(processes + RESERVED_BYTES)),
        decoding_memory_bytes=decoding_store.plus(exactly(tasks_there * measured.decode_task_bytes + RESERVED_BYTES)),
    )


def store_bytes(measured: Measured, *, tasks: int, workers: int) -> Span:
    """Return the object store needed by a node with this many decoding tasks and training workers."""
    blocks = BLOCKS_PER_TASK.times(tasks).plus(BLOCKS_PER_WORKER.times(workers))
    needed = blocks.times(measured.block_bytes / STORE_SHARE)
    return Span(*(max(STORE_FLOOR_BYTES, value) for value in needed))


def speed_of(measured: Measured, hardware: Hardware, nodes: Nodes) -> tuple[Span, bool]:
    """Return the run's clips per second, and whether decoding limits it."""
    step = measured.step_clips_per_second
    training = Span(*(value * share * hardware.workers for value, share in zip(step, EFFICIENCY, strict=True)))
    decoding = measured.decode_clips_per_second.times(nodes.decode_tasks)
    return slower(training, decoding), decoding.middle < training.middle


def epoch_seconds(measured: Measured, hardware: Hardware, nodes: Nodes, speed: Span, evaluate_every: int) -> Span:
    """Return the time of an epoch plus its share of an evaluation, which is taken to be as fast as training if not
    measured."""
    training, scoring = exactly(measured.train_clips) / speed, speed
    if measured.score_clips_per_second:
        scored = exactly(measured.score_clips_per_second * hardware.workers)
        scoring = slower(scored, measured.decode_clips_per_second.times(nodes.decode_tasks))
    return training.plus((exactly(measured.val_videos) / scoring).times(1 / evaluate_every))


def price_per_hour(hardware: Hardware, nodes: Nodes) -> float:
    """Return the hourly price of everything that one run holds."""
    gpus = nodes.training * hardware.gpu_node_gpus if hardware.per_worker.gpus else 0
    cores = nodes.decoding * hardware.node_cpus
    if not hardware.per_worker.gpus:
        cores += nodes.training * hardware.gpu_node_cpus
    return gpus * hardware.price_gpu_hour + cores * hardware.price_cpu_hour


def hours_of(epochs: int, starts: int, epoch: Span, price_per_hour: float, *, max_concurrent: int) -> Estimate:
    """Estimate the cost of this many epochs in runs that start this many times."""
    held = epoch.times(epochs).plus(START_SECONDS.times(starts)).times(1 / 3600)
    return Estimate(hours=held.times(1 / max_concurrent), price=held.times(price_per_hour), epochs=epochs)


def after_preparing(measured: Measured) -> Span:
    """Return the decoding cores per worker for the prepared dataset."""
    assert measured.preparing is not None
    return cores_per_worker(measured) / measured.preparing.speedup


def preparing_core_hours(measured: Measured) -> Span:
    """Return the core-hours that jobs/prepare.py takes for the whole dataset."""
    assert measured.preparing is not None
    videos = measured.train_videos + measured.val_videos
    return measured.preparing.core_seconds_per_video.times(videos / 3600)
