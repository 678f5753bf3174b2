"""What a training run tells its driver while it runs. Plain data; runs anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where the run is: sent by rank 0 as it goes, for the eye; may be lost or repeated after a restart."""

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    top1: float
    clips_per_second: float
    waiting: float
    """Share of the time since the last progress in which the workers waited for data (mean over workers)."""
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class Started:
    """A group of workers has begun; `step` is where it goes on from."""

    step: int
    workers: int


@dataclass(frozen=True, kw_only=True)
class BadVideos:
    """Videos that could not be used: (row of the training manifest, reason, message)."""

    split: str
    found: tuple[tuple[int, str, str], ...]


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """The mean over the steps since the last one of these, over all workers' clips."""

    step: int
    values: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Committed:
    """A checkpoint is in storage, with everything measured since the one before it: sent once for each."""

    step: int
    epoch: int
    checkpoint: str
    scores: dict[str, float] = field(default_factory=dict)
    history: tuple[StepMetrics, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something the user should know, in a sentence."""

    text: str


Event = Progress | Started | BadVideos | Committed | Notice


class Mailbox:
    """Holds events until the driver takes them; an actor of its own, so that neither side waits for the other."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def put(self, event: Event) -> None:
        self._events.append(event)

    def take(self) -> Sequence[Event]:
        """All events since the last call, oldest first."""
        taken, self._events = self._events, []
        return taken
