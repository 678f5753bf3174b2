"""The records of a run. Plain data; runs anywhere, and imports little, so that the mailbox starts without torch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """Means over the steps since the previous metrics, over all workers' clips."""

    step: int
    values: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Record:
    """The record of one checkpoint."""

    step: int
    epoch: int
    scores: dict[str, float] = field(default_factory=dict)
    """Scores on the validation videos, if they were scored at this step."""
    history: tuple[StepMetrics, ...] = ()
    """Metrics of the steps since the previous record."""
    ended: str = ""
    """Why the run ended here before its last step; empty if it did not."""
