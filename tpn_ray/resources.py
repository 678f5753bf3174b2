"""Cluster resources of workers and decoding tasks, and the nodes they may use. Pure; runs anywhere.

The flags of every job are defined here, so that each has a single spelling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from tpn_ray.errors import ConfigError

Labels = dict[str, str]

PATIENCE_SECONDS, GROW_SECONDS = 300.0, 1800.0
"""Longest wait for a decoded clip on a cluster of fixed size, and for anything on a cluster that adds nodes."""


@dataclass(frozen=True, kw_only=True)
class PerWorker:
    """Resources of one worker."""

    cpus: Annotated[float, tyro.conf.arg(name="cpus-per-worker")] = 1.0
    """CPUs reserved for each worker, and its number of torch threads. Leave some for decoding."""

    gpus: Annotated[float, tyro.conf.arg(name="gpus-per-worker")] = 0.0
    """GPUs reserved for each worker; 0 computes on CPUs."""

    resources: Annotated[tuple[str, ...], tyro.conf.arg(name="worker-resources")] = ()
    """Custom resources also reserved for each worker, such as spot=1 or accelerator_type:H100=0.001. Workers run only
    on nodes that declare them."""

    def __post_init__(self) -> None:
        if self.cpus < 0 or self.gpus < 0:
            raise ConfigError(f"cpus_per_worker={self.cpus:g} and gpus_per_worker={self.gpus:g} must not be negative")
        _ = self.custom

    @property
    def custom(self) -> dict[str, float]:
        """The custom resources, by name."""
        return amounts_of(self.resources, "worker_resources")

    @property
    def bundle(self) -> dict[str, float]:
        """All resources, under Ray's names."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus, **self.custom}
        return {name: amount for name, amount in amounts.items() if amount}

    @property
    def threads(self) -> int:
        """Number of torch threads of the worker."""
        return max(1, int(self.cpus))


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Resources of decoding tasks."""

    cpus: Annotated[float, tyro.conf.arg(name="decode-cpus")] = 1.0
    """CPUs reserved for each decoding task."""

    tasks: Annotated[int, tyro.conf.arg(name="decode-tasks")] = 0
    """Maximum number of concurrent decoding tasks; 0: as many as fit."""

    on: Annotated[tuple[str, ...], tyro.conf.arg(name="decode-on")] = ()
    """Labels of the nodes that may decode, such as pool=cpu; if empty, all nodes."""

    may_grow: bool = False
    """Whether the cluster adds nodes on demand. If so, the job waits for resources that are missing at first instead of
    failing."""

    def __post_init__(self) -> None:
        if self.cpus <= 0 or self.tasks < 0:
            raise ConfigError(f"decode_cpus={self.cpus:g} must be above 0, decode_tasks={self.tasks} not below 0")
        _ = self.labels

    @property
    def labels(self) -> Labels:
        """Label selector for the nodes that decode."""
        return labels_of(self.on, "decode_on")

    @property
    def patience_seconds(self) -> float:
        """Longest wait for a decoded clip: longer than a node takes to start if the cluster adds nodes."""
        return GROW_SECONDS if self.may_grow else PATIENCE_SECONDS


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Resources for scoring."""

    workers: int = 1
    """Number of processes that hold the network. The scores have the same bits for any number."""

    per_worker: Annotated[PerWorker, tyro.conf.arg(name="")] = field(default_factory=PerWorker)
    decoding: Annotated[Decoding, tyro.conf.arg(name="")] = field(default_factory=Decoding)

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"workers={self.workers} must be at least 1")


def labels_of(flags: Sequence[str], name: str) -> Labels:
    """Parse KEY=VALUE flags into a Ray label selector. VALUE may also be !VALUE, in(A,B), or !in(A,B)."""
    return dict(_pair(flag, name, "pool=cpu") for flag in flags)


def amounts_of(flags: Sequence[str], name: str) -> dict[str, float]:
    """Parse NAME=AMOUNT flags into Ray resources."""
    amounts = {}
    for flag in flags:
        resource, amount = _pair(flag, name, "spot=1")
        try:
            amounts[resource] = float(amount)
        except ValueError:
            raise ConfigError(f"{name}: {flag!r} has no number after '='; write it like spot=1") from None
        if not 0 < amounts[resource] < float("inf"):
            raise ConfigError(f"{name}: the amount of {flag!r} must be above 0")
        if resource in ("CPU", "GPU"):
            raise ConfigError(f"{name}: {resource} has a flag of its own, --{resource.lower()}s-per-worker")
    return amounts


def has_labels(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Return whether a node with these labels matches the selector, by Ray's rules."""
    return all(_has(labels.get(key), value) for key, value in wanted.items())


def _has(value: str | None, wanted: str) -> bool:
    if wanted.startswith("!"):
        return not _has(value, wanted[1:])
    if wanted.startswith("in(") and wanted.endswith(")"):
        return value in [choice.strip() for choice in wanted[3:-1].split(",")]
    return value == wanted


def _pair(flag: str, name: str, example: str) -> tuple[str, str]:
    key, _, value = flag.partition("=")
    if not key or not value:
        raise ConfigError(f"{name}: {flag!r} must be of the form {example}")
    return key, value
