"""The failure budget: what happens to a run that loses its workers, or Ray Train's controller. Pure.

The budget is counted from the last progress. What was lost before the last committed checkpoint is forgiven: a run of
weeks loses a worker now and then and resumes each time, while a run that makes no progress must end.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tpn_ray.errors import (
    ResourceError,
    StorageError,
    StorageRefusedError,
    SupersededError,
    TornCheckpointError,
    TpnRayError,
    TrackingError,
)

CONTROLLER_STARTS = 20
"""Times that Ray Train's controller may be lost without any progress."""

PASSING = (StorageError, ResourceError, TornCheckpointError, TrackingError, SupersededError)
"""Errors of ours that a new group of workers may not meet again: a node may have been the cause, and a torn checkpoint
is passed over. Any other error, such as a checkpoint of another network, would also end the next group."""


class Lost(Enum):
    """What ended a trainer."""

    WORKERS = "workers"
    """A worker was killed, or met an error that may pass."""
    CONTROLLER = "controller"
    """Ray Train's controller was killed, or ended along with a worker that was."""
    PLACES = "places"
    """Ray Train gave up placing workers, for which it counts failures over its whole life."""
    FOR_GOOD = "for good"
    """The next workers would end in the same way."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """How often something was lost since the last progress."""

    workers: int = 0
    controllers: int = 0


@dataclass(frozen=True)
class StartAgain:
    """A new trainer resumes from the last checkpoint."""

    losses: Losses


@dataclass(frozen=True)
class End:
    """The run ends with the error."""


def is_lasting(error: TpnRayError | None) -> bool:
    """Return whether the next workers would also meet this error from a worker (None: it was not one of ours)."""
    return isinstance(error, StorageRefusedError) or (error is not None and not isinstance(error, PASSING))


def decide(lost: Lost, before: Losses, *, progress: bool, max_failures: int) -> StartAgain | End:
    """Decide whether a run continues. `before` is what it had lost when this trainer started, and `progress` is whether
    a checkpoint was committed since then. With `max_failures` below 0, any number of workers may be lost."""
    if progress:
        before = Losses()
    match lost:
        case Lost.FOR_GOOD:
            return End()
        case Lost.PLACES:
            return StartAgain(before) if progress else End()
        case Lost.CONTROLLER:
            now = Losses(workers=before.workers, controllers=before.controllers + 1)
            return StartAgain(now) if now.controllers < CONTROLLER_STARTS else End()
        case Lost.WORKERS:
            now = Losses(workers=before.workers + 1, controllers=before.controllers)
            return StartAgain(now) if now.workers <= max_failures or max_failures < 0 else End()
