"""What becomes of a run that has lost its workers, or Ray Train's controller: the budget of failures. Pure.

The budget is by progress. What was lost before the last checkpoint that the run has committed is past: a run of weeks
loses a worker now and then, and each time goes on; one that comes no further must end.
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
"""Errors of ours that a new group of workers need not meet again: a node may have been the cause, and a checkpoint that
is torn is passed over. Of all others, such as a checkpoint of another network, the next group would die as well."""


class Lost(Enum):
    """What ended a trainer."""

    WORKERS = "workers"
    """A worker was killed, or met an error that may pass."""
    CONTROLLER = "controller"
    """Ray Train's controller was killed, or ended with a worker that was."""
    PLACES = "places"
    """Ray Train gave up placing workers, of which it counts failures over its whole life."""
    FOR_GOOD = "for good"
    """The next workers would end in the same way."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """How often something was lost since the last progress."""

    workers: int = 0
    controllers: int = 0


@dataclass(frozen=True)
class StartAgain:
    """A new trainer goes on from the last checkpoint."""

    losses: Losses


@dataclass(frozen=True)
class End:
    """The run ends with the error."""


def is_lasting(error: TpnRayError | None) -> bool:
    """Whether an error of ours out of a worker (None: it was no such error) would meet the next workers as well."""
    return isinstance(error, StorageRefusedError) or (error is not None and not isinstance(error, PASSING))


def decide(lost: Lost, before: Losses, *, progress: bool, max_failures: int) -> StartAgain | End:
    """Whether a run goes on: `before` is what it had lost when this trainer began, `progress` whether a checkpoint was
    committed since then. With `max_failures` below 0 any number of workers may be lost."""
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
