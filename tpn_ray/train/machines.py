"""What a run takes of a cluster, and whether the cluster can ever give it. Runs on the driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tpn_ray.data import driver as data
from tpn_ray.data.nodes import amounts_of, has_labels, labels_of
from tpn_ray.errors import ConfigError, ResourceError
from tpn_ray.train.recipe import Recipe

GROW_SECONDS = 1800.0
"""Longest time without workers on a cluster that adds nodes."""


@dataclass(frozen=True, kw_only=True)
class Machines:
    """What a run takes of the cluster."""

    workers: int = 2
    """Ray Train workers; each is one process with one copy of the network."""

    cpus_per_worker: float = 1.0
    """CPUs that each worker holds, and its number of torch threads. Leave some for decoding."""

    gpus_per_worker: float = 0.0
    """GPUs that each worker holds; 0 trains on CPUs."""

    decode_cpus: float = 1.0
    """CPUs that each decoding task holds."""

    worker_resources: tuple[str, ...] = ()
    """Custom resources that each worker holds as well, such as spot=1 or accelerator_type:H100=0.001: workers come only
    where nodes declare them."""

    decode_tasks: int = 0
    """Most decoding tasks at once; 0: as many as fit."""

    decode_on: tuple[str, ...] = ()
    """Labels of the nodes that decode, such as pool=cpu; by default all nodes do."""

    share_clips_gb: float = 0.0
    """Local disk of each node for decoded clips that other trials of a campaign want too; 0 shares nothing."""

    min_workers: int = 0
    """Above 0, the run goes on with fewer workers, down to this many, while the cluster cannot give `workers`, and
    with more again when it can."""

    may_grow: bool = False
    """Set it on an autoscaling cluster: what its nodes of the moment cannot give is then waited for, for half an hour,
    and not refused."""

    resize_seconds: float = 60.0
    """With --min-workers: how often it is looked whether the cluster can give more workers. More of them begin with the
    last checkpoint."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"workers={self.workers} must be at least 1")
        if not 0 <= self.min_workers <= self.workers:
            raise ConfigError(f"min_workers={self.min_workers} must be between 0 and workers={self.workers}")
        if self.cpus_per_worker < 0 or self.gpus_per_worker < 0 or self.decode_cpus <= 0 or self.decode_tasks < 0:
            raise ConfigError("resources must not be negative, and decode_cpus must be above 0")
        if self.share_clips_gb < 0:
            raise ConfigError(f"share_clips_gb={self.share_clips_gb} must not be negative")
        if self.resize_seconds <= 0:
            raise ConfigError(f"resize_seconds={self.resize_seconds:g} must be above 0")
        amounts_of(self.worker_resources, "worker_resources")
        labels_of(self.decode_on, "decode_on")

    def decoding(self, share_with: str = "") -> data.DecodeResources:
        """What one decoding task takes."""
        return data.DecodeResources(
            cpus=self.decode_cpus,
            tasks=self.decode_tasks,
            share_bytes=int(self.share_clips_gb * 1e9) if share_with else 0,
            share_with=share_with,
            on=self.decode_on,
            patience_seconds=GROW_SECONDS if self.may_grow else data.PATIENCE_SECONDS,
        )


def check_division(machines: Machines, recipe: Recipe) -> None:
    """Refuse a number of workers that cannot share the steps of `recipe`, on whatever cluster."""
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
    """Refuse what the cluster, with resources `total` and `nodes` of these labels, can never start."""
    if machines.may_grow:
        return
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    workers = machines.min_workers or machines.workers
    # Ray Data itself runs small tasks of one CPU.
    needed = workers * machines.cpus_per_worker + max(1.0, machines.decode_cpus)
    if needed > cpus:
        raise ResourceError(
            f"too few CPUs: {workers} workers of {machines.cpus_per_worker:g} and one decoding task of "
            f"{max(1.0, machines.decode_cpus):g} need {needed:g}, the cluster has {cpus:g}; use fewer --workers, "
            f"smaller --cpus-per-worker, a larger cluster, or --may-grow if it adds nodes on demand"
        )
    if workers * machines.gpus_per_worker > gpus:
        raise ResourceError(
            f"too few GPUs: {workers} workers of {machines.gpus_per_worker:g} need "
            f"{workers * machines.gpus_per_worker:g}, the cluster has {gpus:g}; use fewer --workers, "
            "or --may-grow if it adds nodes on demand"
        )
    for name, amount in amounts_of(machines.worker_resources, "worker_resources").items():
        if workers * amount > total.get(name, 0.0):
            raise ResourceError(
                f"too little of {name}: {workers} workers of {amount:g} need {workers * amount:g}, the nodes of the "
                f"cluster declare {total.get(name, 0.0):g}; mend --worker-resources, or give --may-grow"
            )
    if not any(has_labels(labels, labels_of(machines.decode_on, "decode_on")) for labels in nodes):
        raise ResourceError(
            f"no node has the labels {' '.join(machines.decode_on)}; mend --decode-on, or give --may-grow if the "
            "cluster adds such nodes on demand"
        )
