"""When checkpoints are written, and which are kept. Pure; runs anywhere."""

from __future__ import annotations

from dataclasses import dataclass

from tpn_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Saving:
    """When to write a checkpoint, besides after every evaluation, and which ones to keep."""

    every_seconds: float = 300.0
    """Longest time between two checkpoints; 0: no limit. A failure costs at most the work since the last one."""

    every_steps: int = 0
    """Interval between checkpoints in steps; 0: none."""

    keep_best: int = 1
    """Number of checkpoints with the highest validation score to keep."""

    keep_last: int = 2
    """Number of newest checkpoints to keep."""

    give_up_seconds: float = 1800.0
    """How long writing checkpoints may keep failing before training stops. Until then, training continues without them;
    at its end, it waits this long for the last one."""

    def __post_init__(self) -> None:
        if min(self.every_seconds, self.every_steps, self.give_up_seconds) < 0:
            raise ConfigError(
                f"every_seconds={self.every_seconds}, every_steps={self.every_steps} and "
                f"give_up_seconds={self.give_up_seconds} must not be negative"
            )
        if self.keep_best < 1 or self.keep_last < 1:
            raise ConfigError(f"keep_best={self.keep_best} and keep_last={self.keep_last} must be at least 1")

    def is_due(self, step: int, seconds: float) -> bool:
        """Return whether to write a checkpoint after `step` steps, `seconds` after the last one."""
        return bool(
            (self.every_steps and step % self.every_steps == 0)
            or (self.every_seconds and seconds >= self.every_seconds)
        )

    def to_delete(self, scores: dict[int, float | None]) -> list[int]:
        """Return the steps of the committed checkpoints, given as step -> score if scored, that need not be kept."""
        newest = sorted(scores)[-self.keep_last :]
        scored = sorted((value, step) for step, value in scores.items() if value is not None)
        best = [step for _, step in scored[-self.keep_best :]]
        return [step for step in sorted(scores) if step not in newest and step not in best]
