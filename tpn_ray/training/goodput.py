"""Where the time of all workers went: every second is booked to one part. Plain Python; runs anywhere.

A worker's `Clock` always books to exactly one part. `Goodput` combines the workers' books, as far as their work became
durable, with what only the driver sees: the time without workers, and the work that a failure made worthless.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tpn_ray.training.record import StepMetrics

PARTS = ("compute", "data", "evaluation", "checkpoint", "other")
"""What a worker books: steps, waiting for clips, scoring, the time a checkpoint holds up a step, and the rest."""

METRIC = "seconds_"
"""Prefix of the metrics that carry the books, in seconds summed over the workers."""


class Clock:
    """Books the time of one worker since it was created."""

    def __init__(self) -> None:
        self._part, self._since = "other", time.perf_counter()
        self._seconds = dict.fromkeys(PARTS, 0.0)

    @contextlib.contextmanager
    def booking(self, part: str) -> Iterator[None]:
        """Book the time inside the block to `part`."""
        before = self._switch(part)
        try:
            yield
        finally:
            self._switch(before)

    def take(self) -> dict[str, float]:
        """Return the seconds by part since the last call."""
        self._switch(self._part)
        taken, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return taken

    def _switch(self, part: str) -> str:
        now = time.perf_counter()
        self._seconds[self._part] += now - self._since
        before, self._part, self._since = self._part, part, now
        return before


@dataclass
class Goodput:
    """The books of a run as its driver sees it, in worker-seconds. Times are seconds since the epoch."""

    begun: float
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*PARTS, "start-up", "lost"), 0.0))
    restarts: int = -1
    workers: int = 0
    """Size of the running group, or 0."""
    _at: float = 0.0
    _booked: float = 0.0

    def __post_init__(self) -> None:
        self._at = self.begun

    def started(self, at: float, workers: int) -> None:
        """Record that a group of workers has started."""
        if self.workers:  # the end of the previous group went unseen
            self.failed(at)
        self.seconds["start-up"] += max(0.0, at - self._at) * workers
        self.workers, self._at, self._booked = workers, at, 0.0
        self.restarts += 1

    def committed(self, history: Sequence[StepMetrics]) -> None:
        """Record that everything measured up to here is durable."""
        for metrics in history:
            for part in PARTS:
                seconds = metrics.values.get(METRIC + part, 0.0)
                self.seconds[part] += seconds
                self._booked += seconds

    def failed(self, at: float) -> None:
        """Record that the group is gone and its work since the last checkpoint is lost."""
        self._end(at, "lost")

    def finished(self, at: float) -> None:
        """Record that the run is over."""
        self._end(at, "other")

    def _end(self, at: float, rest: str) -> None:
        if self.workers:
            self.seconds[rest] += max(0.0, (at - self._at) * self.workers - self._booked)
            self.workers, self._at = 0, at

    @property
    def total(self) -> float:
        """Total worker-seconds."""
        return sum(self.seconds.values())

    @property
    def share(self) -> float:
        """Goodput: the share of all time that went into steps and scores that count."""
        return (self.seconds["compute"] + self.seconds["evaluation"]) / self.total if self.total else 0.0
