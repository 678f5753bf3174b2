"""Everything that a run reads from its first step to its end: micro-batches, with validation videos in between. Pure.

Both come in one stream. The decoding of validation clips then starts before training reaches them, and no second stream
has to be started for each evaluation or starves for CPUs that the first one holds.
"""

from __future__ import annotations

import bisect
import functools
from dataclasses import dataclass
from typing import NamedTuple

from tpn_ray.data.plan import Int64Array, Plan, PlannedMicroBatch, evaluation_slot, evaluation_slots
from tpn_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EvaluationBatch:
    """Validation videos of one slot, -1 where it is not filled; they are scored after `step` steps."""

    step: int
    samples: Int64Array


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The plan, and all `validation` videos after every `evaluate_every` steps and after the last one."""

    plan: Plan
    validation: int
    """Number of validation videos."""
    evaluate_every: int
    """Number of steps between evaluations."""

    def __post_init__(self) -> None:
        if self.validation < 1 or self.evaluate_every < 1:
            raise ConfigError(
                f"validation={self.validation} videos and evaluate_every={self.evaluate_every} must be at least 1"
            )

    def is_evaluated(self, step: int) -> bool:
        """Return whether the network is scored after `step` steps."""
        return step > 0 and (step % self.evaluate_every == 0 or step == self.plan.steps)

    def evaluation_slots(self, workers: int) -> int:
        """Return the number of slots of one evaluation, a multiple of the workers."""
        return evaluation_slots(self.validation, self.plan.micro_batch_clips, workers)

    def blocks(self, workers: int, first_step: int = 0) -> int:
        """Return the number of blocks for all that is left after step `first_step` and its evaluation, if any."""
        return self._stretches(workers, first_step)[-1].first_turn * workers

    def block(self, index: int, workers: int, first_step: int = 0) -> list[PlannedMicroBatch] | list[EvaluationBatch]:
        """Return the slots of block `index`: the next ones of one kind for worker `index` modulo `workers`."""
        turn, worker = divmod(index, workers)
        stretches = self._stretches(workers, first_step)
        place = bisect.bisect_right(stretches, turn, key=lambda stretch: stretch.first_turn) - 1
        first = stretches[place].first_slot + (turn - stretches[place].first_turn) * self._together * workers + worker
        behind = min(first + self._together * workers, stretches[place + 1].first_slot)
        return [self.slot(slot, workers, first_step) for slot in range(first, behind, workers)]  # type: ignore[return-value]

    @property
    def _together(self) -> int:
        return self.plan.micro_batches_per_block

    def slots(self, workers: int, first_step: int = 0) -> int:
        """Return the number of remaining slots."""
        return self._before(self.plan.steps, workers) - self._before(first_step, workers)

    def slot(self, index: int, workers: int, first_step: int = 0) -> PlannedMicroBatch | EvaluationBatch:
        """Return slot `index`, counted from after `first_step`; slot i belongs to worker i modulo `workers`."""
        training, scoring = self.plan.slots_per_step(workers), self.evaluation_slots(workers)
        period = self.evaluate_every * training + scoring
        in_run = self._before(first_step, workers) + index
        periods, in_period = divmod(in_run, period)
        step, steps_left = periods * self.evaluate_every, self.plan.steps - periods * self.evaluate_every
        before_scoring = min(self.evaluate_every, steps_left) * training
        if in_period < before_scoring:
            return self.plan.slot(in_period, workers, step)
        batch = in_period - before_scoring
        return EvaluationBatch(
            step=step + min(self.evaluate_every, steps_left),
            samples=evaluation_slot(batch, self.validation, self.plan.micro_batch_clips),
        )

    def _before(self, step: int, workers: int) -> int:
        """Return the number of slots before the next training slot once `step` steps are done and scored."""
        evaluations = step // self.evaluate_every + (step == self.plan.steps and step % self.evaluate_every > 0)
        return step * self.plan.slots_per_step(workers) + evaluations * self.evaluation_slots(workers)

    @functools.lru_cache(maxsize=4)  # noqa: B019 - a schedule lives as long as its run
    def _stretches(self, workers: int, first_step: int) -> list[_Stretch]:
        """List where each stretch of training or evaluation starts and, last, where everything ends."""
        turn = slot = 0
        stretches = [_Stretch(turn, slot)]
        step = first_step
        while step < self.plan.steps:
            end = min(self.plan.steps, (step // self.evaluate_every + 1) * self.evaluate_every)
            for slots in ((end - step) * self.plan.slots_per_step(workers), self.evaluation_slots(workers)):
                slot += slots
                turn += -(-slots // (workers * self._together))
                stretches.append(_Stretch(turn, slot))
            step = end
        return stretches


class _Stretch(NamedTuple):
    """The first slot of a stretch, and its first turn; in a turn, every worker gets one block."""

    first_turn: int
    first_slot: int
