"""The events that a training run sends its driver while it runs. Plain data; runs anywhere."""

from __future__ import annotations

from dataclasses import dataclass, field

from tpn_ray.training.record import Record, StepMetrics


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where the run is, for display: sent by rank 0 as it trains. It may be lost, or repeated after a restart."""

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    top1: float
    clips_per_second: float
    waiting: float
    """Share of the time since the last progress event that the workers waited for data (mean over workers)."""
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class NodeLoad:
    """How busy a node of the run is: sent by its first worker as it trains. It may be lost."""

    node: str
    """Address of the node."""
    step: int
    values: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Started:
    """A group of workers has started; `step` is where it resumes."""

    step: int
    workers: int
    at: float
    """Seconds since the epoch."""
    placement_group: str = ""
    """Id of the placement group that holds the group's resources."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The group of workers is gone."""

    at: float


@dataclass(frozen=True, kw_only=True)
class Diverged:
    """The loss of a micro-batch is not finite: training ends."""

    step: int
    """Step, from 0."""
    number: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class BadVideos:
    """Unusable videos: (row of the split's manifest, reason, message)."""

    split: str
    found: tuple[tuple[int, str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Committed:
    """A checkpoint is in storage, with everything measured since the previous one. Sent once for each.

    It has scores if the validation videos were scored at this step. `checkpoint` may be a later one, if this step's
    could not be written.
    """

    step: int
    epoch: int
    checkpoint: str
    scores: dict[str, float] = field(default_factory=dict)
    history: tuple[StepMetrics, ...] = ()
    ended: str = ""
    """Why the run ended here before its last step; empty if it did not."""

    @classmethod
    def of(cls, record: Record, checkpoint: str) -> Committed:
        """Return the event for a record."""
        return cls(
            step=record.step,
            epoch=record.epoch,
            checkpoint=checkpoint,
            scores=record.scores,
            history=record.history,
            ended=record.ended,
        )


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something the user should know, in a sentence."""

    text: str
    about: str = ""
    """Subject that several processes may report on; only a text that differs from the last notice about it is news."""


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """Training ends with an error that restarting the workers would not fix."""

    error: Exception


Event = Progress | NodeLoad | Started | Failed | Diverged | Stopped | BadVideos | Committed | Notice
