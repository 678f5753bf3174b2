"""Whether a job can ever run on a cluster that may grow: arithmetic on groups of equal nodes. Pure; runs anywhere."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tpn_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class NodeGroup:
    """Nodes of one kind, as many as the cluster may have of them."""

    name: str
    nodes: int
    cpus: float
    """Of each node."""
    gpus: float = 0.0
    """Of each node."""

    def __post_init__(self) -> None:
        if self.nodes < 0 or self.cpus < 0 or self.gpus < 0:
            raise ConfigError(
                f"group {self.name}: nodes={self.nodes}, cpus={self.cpus} and gpus={self.gpus} must not be negative"
            )

    def holds(self, cpus: float, gpus: float) -> int:
        """How many processes of this size fit on one node."""
        fits = [_times(has, takes) for has, takes in ((self.cpus, cpus), (self.gpus, gpus)) if takes]
        return min(fits, default=sys.maxsize)


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a job must have at the same time to go on."""

    workers: int = 0
    """Processes that hold the network, over all trials that run side by side."""
    cpus_per_worker: float = 0.0
    gpus_per_worker: float = 0.0
    decoders: int = 1
    """Decoding tasks, beside the workers."""
    decode_cpus: float = 1.0

    def __str__(self) -> str:
        decoders = f"{self.decoders} decoding tasks of {self.decode_cpus:g} CPUs"
        workers = f"{self.workers} workers of {self.cpus_per_worker:g} CPUs and {self.gpus_per_worker:g} GPUs"
        return f"{workers} beside {decoders}" if self.workers else decoders


def problem(demand: Demand, groups: Sequence[NodeGroup]) -> str:
    """Why these groups can never give what is asked for; "" if they can.

    As Ray does it, workers that want no GPU are put on nodes without GPUs first. What workers leave of a node decodes.
    """
    left, slots = demand.workers, 0
    for group in sorted(groups, key=lambda group: group.gpus):
        most = group.holds(demand.cpus_per_worker, demand.gpus_per_worker)
        for _ in range(group.nodes):
            here = min(left, most)
            left -= here
            slots += _times(group.cpus - here * demand.cpus_per_worker, demand.decode_cpus)
    has = "; ".join(f"{group.nodes} x {group.name} ({group.cpus:g} CPUs, {group.gpus:g} GPUs)" for group in groups)
    if left:
        return f"{demand}: {demand.workers - left} of the workers fit on {has or 'no nodes'}"
    if slots < demand.decoders:
        return f"{demand}: {slots} of the decoding tasks fit on {has or 'no nodes'}"
    return ""


def _times(has: float, takes: float) -> int:
    """How often one goes into the other; 0.1 goes three times into 0.3."""
    return math.floor(has / takes + 1e-9)
