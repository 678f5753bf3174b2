"""What a run reads, from its first step to its end: the plan's micro-batches, and the validation videos in between.

One stream for both: the decoding of validation clips then begins before training reaches them, and no second stream
has to be started, or starves for CPUs that the first one holds, whenever the network is to be scored. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from tpn_ray.data.plan import Int64Array, MicroBatch, Plan, evaluation_slot, evaluation_slots
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

    def slots(self, workers: int, first_step: int = 0) -> int:
        """Slots that are left after `first_step` steps and, if one is due there, their evaluation."""
        return self._before(self.plan.steps, workers) - self._before(first_step, workers)

    def slot(self, index: int, workers: int, first_step: int = 0) -> MicroBatch | EvaluationBatch:
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
