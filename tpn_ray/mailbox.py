"""What workers tell their driver, kept until the driver takes it, so that neither side waits for the other.

An actor beside the driver, the only kind that a job has by itself apart from its workers, and so nothing that may end
the job: it is on the driver's node, without which there is no job; killed, it is begun again; and what it held then is
nothing that matters, since it is in storage as well, or is found again. Runs on the driver.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tpn_ray.errors import ResourceError

ANSWER_SECONDS = 120.0
"""Longest wait for an answer that takes milliseconds, or the seconds of a new process."""


class Mailbox:
    """The actor."""

    def __init__(self) -> None:
        self._held: list[Any] = []

    def put(self, message: Any) -> None:
        """Keep a message."""
        self._held.append(message)

    def take(self) -> Sequence[Any]:
        """All messages since the last call, oldest first."""
        taken, self._held = self._held, []
        return taken


def beside_driver() -> Any:
    """A new mailbox: the handle of its actor."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return (
        ray.remote(Mailbox).options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here).remote()
    )


def take(mailbox: Any) -> Sequence[Any]:
    """What was put in since the last call. Raises ResourceError where the cluster does not answer."""
    try:
        taken: Sequence[Any] = ray.get(mailbox.take.remote(), timeout=ANSWER_SECONDS)
    except ray.exceptions.RayError as error:
        raise ResourceError(
            f"the cluster does not answer any more ({type(error).__name__}); the same command goes on from what is in "
            "storage when it does"
        ) from error
    return taken
