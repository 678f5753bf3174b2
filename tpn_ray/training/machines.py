"""The cluster resources of a run, and whether the cluster can ever provide them. Runs on the driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import tyro

from tpn_ray.errors import ConfigError, ResourceError
from tpn_ray.recipe import Recipe
from tpn_ray.resources import Decoding, PerWorker, Resources, has_labels


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Cluster resources of a run."""

    workers: int = 2
    """Number of Ray Train workers, each a process with one copy of the network."""

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
        if self.workers < 1:
            raise ConfigError(f"workers={self.workers} must be at least 1")
        if not 0 <= self.min_workers <= self.workers:
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
    def for_scoring(self) -> Resources:
        """The same share of the cluster as training, for scoring."""
        per_worker = replace(self.per_worker, cpus=self.per_worker.cpus or 1.0)
        return Resources(workers=self.workers, per_worker=per_worker, decoding=self.decoding)


def check_division(machines: Machines, recipe: Recipe) -> None:
    """Refuse a number of workers that cannot divide the steps of `recipe`, on any cluster."""
    shares = recipe.loop.micro_batches_per_step
    if machines.workers > shares:
        raise ResourceError(
            f"{machines.workers} workers cannot share the {shares} micro-batches of a step: "
            f"use at most {shares} workers, or smaller --loop.micro-batch-clips"
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


def check_feasible(machines: Machines, total: Mapping[str, float], nodes: Sequence[Mapping[str, str]]) -> None:
    """Refuse what the cluster, with resources `total` and nodes with these labels, can never start."""
    each, decoding = machines.per_worker, machines.decoding
    if decoding.may_grow:
        return
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    workers = machines.min_workers or machines.workers
    task = max(1.0, decoding.cpus)  # Ray Data itself runs small tasks of one CPU
    needed = workers * each.cpus + task
    if needed > cpus:
        raise ResourceError(
            f"too few CPUs: {workers} workers of {each.cpus:g} and one decoding task of {task:g} need {needed:g}, the "
            f"cluster has {cpus:g}; use fewer --workers, smaller --cpus-per-worker, a larger cluster, or --may-grow if "
            "it adds nodes on demand"
        )
    if workers * each.gpus > gpus:
        raise ResourceError(
            f"too few GPUs: {workers} workers of {each.gpus:g} need {workers * each.gpus:g}, the cluster has {gpus:g}; "
            "use fewer --workers, or --may-grow if it adds nodes on demand"
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
