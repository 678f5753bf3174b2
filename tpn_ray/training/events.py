"""What a training run tells its driver while it runs. Plain data; runs anywhere."""

from __future__ import annotations

from dataclasses import dataclass, field

from tpn_ray.training.record import Record, StepMetrics


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
    at: float
    """Seconds since the epoch."""
    placement_group: str = ""
    """Id of what holds the group's resources."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The group of workers is gone."""

    at: float


@dataclass(frozen=True, kw_only=True)
class Diverged:
    """The loss of a micro-batch is no number: training ends."""

    step: int
    """From 0."""
    number: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class BadVideos:
    """Videos that could not be used: (row of the training manifest, reason, message)."""

    split: str
    found: tuple[tuple[int, str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Committed:
    """A checkpoint is in storage, with everything measured since the one before it: sent once for each.

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
        """The event for a record."""
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
    """What several processes may tell of: then only what differs from the last notice about it is news."""


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """Training ends by an error that no new start of the workers would mend."""

    error: Exception


Event = Progress | Started | Failed | Diverged | Stopped | BadVideos | Committed | Notice
