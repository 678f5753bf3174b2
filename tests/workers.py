"""Groups of processes that compute together, forked from one that has imported torch: a new one takes seconds."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any

from torch.multiprocessing import start_processes


def run(worker: Callable[..., None], arguments: Sequence[Any], count: int) -> None:
    """Call `worker(rank, *arguments)` in `count` processes. An error in one is raised here."""
    # Without effect if the server runs already; then it has imported what jobs import, torch among it.
    multiprocessing.get_context("forkserver").set_forkserver_preload(["tpn_ray.training.step"])
    start_processes(worker, args=tuple(arguments), nprocs=count, start_method="forkserver")
