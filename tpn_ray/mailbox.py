"""A mailbox for the workers' messages to their driver. It keeps them so that neither side waits for the other.

The mailbox is an actor on the driver's node, the only actor that a job has besides its workers. It cannot end the job:
without the driver's node there is no job, a killed mailbox is restarted, and whatever it held is also in storage or is
found again. Runs on the driver.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tpn_ray.errors import ResourceError

ANSWER_SECONDS = 120.0
"""Longest wait for an answer, which takes milliseconds, or seconds if a new process has to start."""


class Mailbox:
    """The actor that holds the messages."""

    def __init__(self) -> None:
        self._held: list[Any] = []

    def put(self, message: Any) -> None:
        """Keep a message."""
        self._held.append(message)

    def take(self) -> Sequence[Any]:
        """Return all messages since the last call, oldest first, and forget them."""
        taken, self._held = self._held, []
        return taken


def beside_driver() -> Any:
    """Start a mailbox on the driver's node and return its actor handle."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return (
        ray.remote(Mailbox).options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here).remote()
    )


def take(mailbox: Any) -> Sequence[Any]:
    """Return the messages since the last call. Raises ResourceError if the cluster does not answer."""
    try:
        taken: Sequence[Any] = ray.get(mailbox.take.remote(), timeout=ANSWER_SECONDS)
    except ray.exceptions.RayError as error:
        raise ResourceError(
            f"the cluster no longer answers ({type(error).__name__}); once it does, the same command resumes from what "
            "is in storage"
        ) from error
    return taken
