"""When checkpoints are written and which ones stay. Pure; runs anywhere."""

from __future__ import annotations

from dataclasses import dataclass

from tpn_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Saving:
    """When a checkpoint is written, besides after every evaluation, and which ones stay."""

    every_seconds: float = 300.0
    """Longest time between two checkpoints; 0: no limit. A failure costs at most the work since the last one."""

    every_steps: int = 0
    """Write one after every so many steps; 0: do not count."""

    keep_best: int = 1
    """Checkpoints with the highest validation top-1 that stay."""

    keep_last: int = 2
    """Newest checkpoints that stay."""

    give_up_seconds: float = 1800.0
    """How long checkpoints may fail to be written, one after the other, before training stops. Until then it goes on
    without them; at its end it waits so long for the last one."""

    def __post_init__(self) -> None:
        if min(self.every_seconds, self.every_steps, self.give_up_seconds) < 0:
            raise ConfigError(
                f"every_seconds={self.every_seconds}, every_steps={self.every_steps} and "
                f"give_up_seconds={self.give_up_seconds} must not be negative"
            )
        if self.keep_best < 1 or self.keep_last < 1:
            raise ConfigError(f"keep_best={self.keep_best} and keep_last={self.keep_last} must be at least 1")

    def is_due(self, step: int, seconds: float) -> bool:
        """Whether to write one after `step` steps, `seconds` after the last one."""
        return bool(
            (self.every_steps and step % self.every_steps == 0)
            or (self.every_seconds and seconds >= self.every_seconds)
        )

    def to_delete(self, top1: dict[int, float | None]) -> list[int]:
        """Of committed checkpoints, step -> top-1 if it was scored, the steps of those that need not stay."""
        newest = sorted(top1)[-self.keep_last :]
        scored = sorted((value, step) for step, value in top1.items() if value is not None)
        best = [step for _, step in scored[-self.keep_best :]]
        return [step for step in sorted(top1) if step not in newest and step not in best]
