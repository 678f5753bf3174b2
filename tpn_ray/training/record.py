"""What a run has on record. Plain data; runs anywhere, and needs nothing: the mailbox begins without torch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """The mean over the steps since the last one of these, over all workers' clips."""

    step: int
    values: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one checkpoint has on record."""

    step: int
    epoch: int
    scores: dict[str, float] = field(default_factory=dict)
    """On the validation videos, where they were scored at this step."""
    history: tuple[StepMetrics, ...] = ()
    """Of the steps since the record before this one."""
    ended: str = ""
    """Why the run ended here before its last step; empty if it did not."""
