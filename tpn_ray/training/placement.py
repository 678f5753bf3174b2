"""Placement of a run's workers in the cluster: waiting for it, and freeing it. Runs on the driver."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Mapping

import ray
import ray.exceptions
from ray.util.placement_group import PlacementGroup
from ray.util.state import list_actors, list_placement_groups
from ray.util.state.exception import RayStateApiException

from tpn_ray.errors import ResourceError
from tpn_ray.training.accounting import RunLedger
from tpn_ray.training.events import Notice

LOOK_SECONDS, SAY_SECONDS = 5.0, 60.0
"""Pause between two checks whether the workers are placed, and time without placement before the user is told."""
ABANDONED_SECONDS, ABANDONED_LOOKS = 120.0, 3
"""How long after the end of a controller to look for placement groups without actors, and how many checks in a row must
find one before it is freed."""
STATE_SECONDS, MOST_LISTED = 20, 10_000
"""Timeout and limit of a query to Ray's State API."""


class Places:
    """Watches whether the workers are placed in the cluster. If none is, Ray Train waits forever, in silence."""

    def __init__(self, ledger: RunLedger, longest: float, now: float) -> None:
        self._ledger, self._longest = ledger, longest
        self._placed = self._looked = now
        self._told = False
        self._lost = -math.inf
        self._abandoned = Counter[str]()

    def controller_lost(self) -> None:
        """Start looking for abandoned placement groups: of workers that had not started when their controller ended."""
        self._lost = time.monotonic()

    def look(self, now: float) -> None:
        """Report a long wait to the user, and raise ResourceError when it exceeds the limit. Called often."""
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        if now - self._lost < ABANDONED_SECONDS:
            self._free_abandoned()
        if is_placed(self._ledger.placement_group):
            self._placed, self._told = now, False
        elif now - self._placed > self._longest:
            raise ResourceError(
                f"the cluster gave the run no workers for {self._longest / 60:.0f} minutes; it has "
                f"{_amounts(ray.cluster_resources())}. The same command with the same --name resumes"
            )
        elif now - self._placed > SAY_SECONDS and not self._told:
            self._told = True
            self._ledger(Notice(text=f"waiting for workers; the cluster has {_amounts(ray.cluster_resources())}"))

    def _free_abandoned(self) -> None:
        """Free placement groups without an actor in several checks; those of other trials get theirs within moments."""
        without = _without_actors()
        self._abandoned = Counter({group: self._abandoned[group] + 1 for group in without})
        for group, looks in self._abandoned.items():
            if looks == ABANDONED_LOOKS:
                release(group)


def is_placed(placement_group: str) -> bool:
    """Return whether the workers that started last are still placed."""
    if not placement_group:
        return False
    group = PlacementGroup(ray.PlacementGroupID(bytes.fromhex(placement_group)))
    state: str = ray.util.placement_group_table(group).get("state", "")
    return state == "CREATED"


def _amounts(resources: Mapping[str, float]) -> str:
    hidden = (":", "_group_", "memory")  # addresses, what a placement group holds, bytes
    shown = {name: amount for name, amount in resources.items() if not any(part in name for part in hidden)}
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(shown.items())) or "no CPUs"


def release(placement_group: str) -> None:
    """Free what the workers of a dead controller held. By default, it stays until the job ends.

    Ray Train has a helper for this, but it needs the dashboard and does not know of workers that had not started.
    """
    if placement_group:
        group = PlacementGroup(ray.PlacementGroupID(bytes.fromhex(placement_group)))
        with contextlib.suppress(ray.exceptions.RayError, ValueError):  # it may be gone already
            ray.util.remove_placement_group(group)


def _without_actors() -> set[str]:
    """Return this job's created placement groups that hold no actor; none if Ray's State API does not answer."""
    job = ray.get_runtime_context().get_job_id()
    groups_of, actors_of = (
        [("creator_job_id", "=", job), ("state", "=", "CREATED")],
        [("job_id", "=", job), ("state", "!=", "DEAD")],
    )
    try:
        groups = list_placement_groups(filters=groups_of, limit=MOST_LISTED, timeout=STATE_SECONDS)
        actors = list_actors(filters=actors_of, detail=True, limit=MOST_LISTED, timeout=STATE_SECONDS)
    except (RayStateApiException, ConnectionError):
        return set()
    held = {actor.placement_group_id for actor in actors}
    return {group.placement_group_id for group in groups if group.placement_group_id not in held}
