"""What a run reads, from its first step to its end: the plan's micro-batches, and the validation videos in between.

One stream for both: the decoding of validation clips then begins before training reaches them, and no second stream
has to be started, or starves for CPUs that the first one holds, whenever the network is to be scored. Pure.
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
    """Validation videos of one slot, -1 where it is not filled; `step` steps are done when they are scored."""

    step: int
    samples: Int64Array


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The plan, and all `validation` videos after every `evaluate_every` steps and after the last one."""

    plan: Plan
    validation: int
    """Number of validation videos."""
    evaluate_every: int
    """In steps."""

    def __post_init__(self) -> None:
        if self.validation < 1 or self.evaluate_every < 1:
            raise ConfigError(
                f"validation={self.validation} videos and evaluate_every={self.evaluate_every} must be at least 1"
            )

    def is_evaluated(self, step: int) -> bool:
        """Whether the network is scored when `step` steps are done."""
        return step > 0 and (step % self.evaluate_every == 0 or step == self.plan.steps)

    def evaluation_slots(self, workers: int) -> int:
        """Slots of one evaluation, the same number for every worker."""
        return evaluation_slots(self.validation, self.plan.micro_batch_clips, workers)

    def blocks(self, workers: int, first_step: int = 0) -> int:
        """Blocks that carry all that is left after `first_step` steps and, if one was due there, their evaluation."""
        return self._stretches(workers, first_step)[-1].first_turn * workers

    def block(self, index: int, workers: int, first_step: int = 0) -> list[PlannedMicroBatch] | list[EvaluationBatch]:
        """The slots of block `index`, which goes to worker `index` modulo `workers`: its next ones of one kind."""
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
        """Slots that are left."""
        return self._before(self.plan.steps, workers) - self._before(first_step, workers)

    def slot(self, index: int, workers: int, first_step: int = 0) -> PlannedMicroBatch | EvaluationBatch:
        """Slot `index`, counted from after `first_step`; slot i belongs to worker i modulo `workers`."""
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
        """Slots that lie before the next training slot when `step` steps are done and scored."""
        evaluations = step // self.evaluate_every + (step == self.plan.steps and step % self.evaluate_every > 0)
        return step * self.plan.slots_per_step(workers) + evaluations * self.evaluation_slots(workers)

    @functools.lru_cache(maxsize=4)  # noqa: B019 - a schedule is as long-lived as its run
    def _stretches(self, workers: int, first_step: int) -> list[_Stretch]:
        """Where each stretch of training or of evaluation begins, and, last, where everything ends."""
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
    """Its first slot, and its first turn, in which every worker gets one block."""

    first_turn: int
    first_slot: int
