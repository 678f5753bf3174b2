"""The cluster resources of a run, and whether the cluster can ever provide them. Runs on the driver."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated

import tyro

from tpn_ray.errors import ConfigError, ResourceError
from tpn_ray.recipe import Recipe
from tpn_ray.resources import Decoding, PerWorker, Resources, has_labels

CPU_WORKERS = 2
"""Workers to take by default where they compute on CPUs, which decoding needs too, or on nodes that are yet to come."""


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Cluster resources of a run."""

    workers: int = 2
    """Number of Ray Train workers, each a process with one copy of the network. 0: as many as a step can be shared by
    and the cluster has GPUs for; on CPUs at most two."""

    min_workers: int = 0
    """Minimum number of workers. Above 0, the run continues with fewer workers, down to this many, while the cluster
    cannot provide `workers`, and grows again when it can."""

    resize_seconds: float = 60.0
    """With --min-workers: interval at which to check whether the cluster can provide more workers. A larger group
    starts from the last checkpoint."""

    per_worker: Annotated[PerWorker, tyro.conf.arg(name="")] = field(default_factory=PerWorker)
    decoding: Annotated[Decoding, tyro.conf.arg(name="")] = field(default_factory=Decoding)

    collective_minutes: float = 5.0
    """Longest time in minutes that a worker waits for the others in a step, in addition to what one of them may wait
    for clips (5 minutes; with --may-grow 30) and storage (--storage-seconds). Then the workers restart from the last
    checkpoint, as after a broken link between two of them."""

    share_clips_gb: float = 0.0
    """Local disk per node for decoded clips that other trials of a campaign also need; 0 shares nothing."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"workers={self.workers} must not be negative")
        if self.min_workers < 0 or (self.workers and self.min_workers > self.workers):
            raise ConfigError(f"min_workers={self.min_workers} must be between 0 and workers={self.workers}")
        if self.collective_minutes < 1:
            raise ConfigError(
                f"collective_minutes={self.collective_minutes:g} must be at least 1: workers start and compile at "
                "different speeds"
            )
        if self.share_clips_gb < 0:
            raise ConfigError(f"share_clips_gb={self.share_clips_gb} must not be negative")
        if self.resize_seconds <= 0:
            raise ConfigError(f"resize_seconds={self.resize_seconds:g} must be above 0")

    @property
    def as_parameters(self) -> dict[str, str]:
        """All settings as MLflow lists them, under the names of their flags."""
        own = {item.name: getattr(self, item.name) for item in fields(self)}
        parts = (own.pop("per_worker"), own.pop("decoding"))
        named = {"cpus": "cpus_per_worker", "gpus": "gpus_per_worker", "resources": "worker_resources"}
        decoding = {"cpus": "decode_cpus", "tasks": "decode_tasks", "on": "decode_on"}
        for part, names in zip(parts, (named, decoding), strict=True):
            own |= {names.get(item.name, item.name): getattr(part, item.name) for item in fields(part)}
        return {f"machines.{name}": str(value) for name, value in own.items()}

    @property
    def for_scoring(self) -> Resources:
        """The same share of the cluster as training, for scoring."""
        per_worker = replace(self.per_worker, cpus=self.per_worker.cpus or 1.0)
        return Resources(workers=self.workers, per_worker=per_worker, decoding=self.decoding)


def check_division(machines: Machines, recipe: Recipe) -> None:
    """Refuse a number of workers that cannot divide the steps of `recipe`, on any cluster."""
    shares = recipe.loop.micro_batches_per_step
    if not machines.workers:
        raise ConfigError("--workers 0 lets a single run choose (jobs/train.py); give --workers 1 or more here")
    if machines.workers > shares:
        raise ResourceError(
            f"{machines.workers} workers cannot share the {shares} micro-batches of a step: give --workers {shares} or "
            "fewer, or smaller --loop.micro-batch-clips"
        )
    together = recipe.loop.sync_batch_norm
    if machines.workers % together:
        raise ResourceError(
            f"{machines.workers} workers cannot form groups of {together}: give a multiple of it as --workers, or "
            "another --loop.sync-batch-norm"
        )
    if together > 1 and machines.min_workers not in (0, machines.workers):
        raise ResourceError(
            f"--min-workers {machines.min_workers} lets a run have any number of workers, but with "
            f"--loop.sync-batch-norm {together} it must stay a multiple of {together}: leave one of them out"
        )


def fitted(machines: Machines, recipe: Recipe, total: Mapping[str, float]) -> Machines:
    """Return the machines with a number of workers where none was given: one that can share the steps of `recipe`, and
    that a cluster with resources `total` has room for, beside a decoding task. It is at least 1 (or the minimum), and
    `check_feasible` says what is missing for that."""
    if machines.workers:
        return machines
    each, shares, together = machines.per_worker, recipe.loop.micro_batches_per_step, recipe.loop.sync_batch_norm
    room = [float(shares)]
    if machines.decoding.may_grow or not each.gpus:
        room.append(CPU_WORKERS)
    if not machines.decoding.may_grow:
        room += [(total.get("CPU", 0.0) - decoding_task(machines)) / each.cpus] if each.cpus else []
        room += [total.get("GPU", 0.0) / each.gpus] if each.gpus else []
    most = max(int(min(room)), 1)
    busy = math.ceil(shares / math.ceil(shares / most))  # with more, some would only wait for the others
    return replace(machines, workers=max(busy // together * together, together, machines.min_workers))


def decoding_task(machines: Machines) -> float:
    """Return the CPUs that decoding needs at least: Ray Data itself runs small tasks of one CPU."""
    return max(1.0, machines.decoding.cpus)


def check_feasible(machines: Machines, total: Mapping[str, float], nodes: Sequence[Mapping[str, str]]) -> None:
    """Refuse what the cluster, with resources `total` and nodes with these labels, can never start."""
    each, decoding = machines.per_worker, machines.decoding
    if decoding.may_grow:
        return
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    workers = machines.min_workers or machines.workers
    flag = "--min-workers" if machines.min_workers else "--workers"
    task = decoding_task(machines)
    needed = workers * each.cpus + task
    if needed > cpus:
        ways = _ways(flag, workers, each.cpus, cpus - task)
        raise ResourceError(
            f"too few CPUs: the cluster has {cpus:g}, and {needed:g} are needed:\n"
            f"  {workers * each.cpus:g} for {workers} worker{'' if workers == 1 else 's'} ({flag} {workers}) of "
            f"{each.cpus:g} (--cpus-per-worker {each.cpus:g})\n"
            f"  {task:g} for a decoding task (--decode-cpus {decoding.cpus:g}, at least 1)\n"
            f"Give {ways}a larger cluster, or --may-grow if it adds nodes on demand"
        )
    if workers * each.gpus > gpus:
        raise ResourceError(
            f"too few GPUs: the cluster has {gpus:g}, and {workers * each.gpus:g} are needed for {workers} "
            f"worker{'' if workers == 1 else 's'} ({flag} {workers}) of {each.gpus:g} (--gpus-per-worker {each.gpus:g})"
            "; use fewer workers, or --may-grow if the cluster adds nodes on demand"
        )
    for name, amount in each.custom.items():
        if workers * amount > total.get(name, 0.0):
            raise ResourceError(
                f"too little of {name}: {workers} workers of {amount:g} need {workers * amount:g}, the nodes of the "
                f"cluster declare {total.get(name, 0.0):g}; fix --worker-resources, or give --may-grow"
            )
    if not any(has_labels(labels, decoding.labels) for labels in nodes):
        raise ResourceError(
            f"no node has the labels {' '.join(decoding.on)}; fix --decode-on, or give --may-grow if the cluster adds "
            "such nodes on demand"
        )


def _ways(flag: str, workers: int, each: float, room: float) -> str:
    """Return the flags by which the workers would fit into the CPUs that decoding leaves, each followed by a comma."""
    fewer, smaller = (int(room / each), int(100 * room / workers) / 100) if room > 0 else (0, 0.0)
    return (f"{flag} {fewer}, " if fewer else "") + (f"--cpus-per-worker {smaller:g}, " if smaller else "")
