"""Where the time of all workers went: every second is booked to one part. Runs anywhere; no torch without a GPU.

A worker's `Clock` always books to exactly one part. `Goodput` combines the workers' books, as far as their work became
durable, with what only the driver sees: the time without workers, and the work that a failure made worthless.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

from tpn_ray.training.record import StepMetrics

PARTS = ("compute", "data", "evaluation", "checkpoint", "other")
"""What a worker books: steps, waiting for clips, scoring, the time a checkpoint holds up a step, and the rest."""

METRIC = "seconds_"
"""Prefix of the metrics that carry the books, in seconds summed over the workers."""


PEAK = "system/peak_memory_megabytes"
"""Metric: the largest memory of any worker so far, on its GPU if it has one."""


class Timeline(Protocol):
    """Something that marks moments."""

    def mark(self) -> Any:
        """Mark this moment."""

    def seconds(self, begin: Any, end: Any) -> float:
        """Return the time between two marks."""


class HostTime:
    """The time of this process."""

    def mark(self) -> float:
        """Return the time."""
        return time.perf_counter()

    def seconds(self, begin: float, end: float) -> float:
        """Return the difference."""
        return end - begin


class DeviceTime:
    """The time of a GPU: a mark is queued behind the work that was launched before it, so nothing waits for it.

    A step is over when the GPU has done it, long after the process has launched it; and a wait for clips counts only
    from when the GPU has nothing left to do.
    """

    def __init__(self, device: str) -> None:
        import torch

        self._cuda, self._device = torch.cuda, device

    def mark(self) -> Any:
        """Queue a mark."""
        event = self._cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._cuda.current_stream(self._device))
        return event

    def seconds(self, begin: Any, end: Any) -> float:
        """Return the time between two marks; waits until the GPU is there."""
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000


class Clock:
    """Books the time of one worker since it was created."""

    def __init__(self, timeline: Timeline | None = None) -> None:
        self._timeline = timeline or HostTime()
        self._marks = [("other", self._timeline.mark())]
        """Each part, and when it began."""

    @classmethod
    def of(cls, device: str) -> Clock:
        """Return a clock that runs in the time of the device."""
        return cls(DeviceTime(device) if device.startswith("cuda") else HostTime())

    @contextlib.contextmanager
    def booking(self, part: str) -> Iterator[None]:
        """Book the time inside the block to `part`."""
        before = self._marks[-1][0]
        self._marks.append((part, self._timeline.mark()))
        try:
            yield
        finally:
            self._marks.append((before, self._timeline.mark()))

    def take(self) -> dict[str, float]:
        """Return the seconds by part since the last call."""
        self._marks.append((self._marks[-1][0], self._timeline.mark()))
        taken = dict.fromkeys(PARTS, 0.0)
        for (part, begin), (_, end) in pairwise(self._marks):
            taken[part] += self._timeline.seconds(begin, end)
        del self._marks[:-1]
        return taken


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
