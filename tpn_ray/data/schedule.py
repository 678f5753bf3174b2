"""Everything that a run reads from its first step to its end: micro-batches, with validation videos in between. Pure.

Both come in one stream. The decoding of validation clips then starts before training reaches them, and no second stream
has to be started for each evaluation or starves for CPUs that the first one holds.
"""

from __future__ import annotations

import bisect
import functools
from dataclasses import dataclass
from typing import NamedTuple

from tpn_ray.data.plan import Cycle, Int64Array, Plan, PlannedMicroBatch, evaluation_slot, evaluation_slots
from tpn_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EvaluationBatch:
    """Validation videos of one slot, -1 where it is not filled; they are scored after `step` steps."""

    step: int
    samples: Int64Array


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The plan, and all `validation` videos after every `evaluate_every` epochs and after the last one."""

    plan: Plan
    validation: int
    """Number of validation videos."""
    evaluate_every: int
    """Number of epochs between evaluations."""

    def __post_init__(self) -> None:
        if self.validation < 1 or self.evaluate_every < 1:
            raise ConfigError(
                f"validation={self.validation} videos and evaluate_every={self.evaluate_every} must be at least 1"
            )

    def is_evaluated(self, step: int) -> bool:
        """Return whether the network is scored after `step` steps."""
        return step in self._evaluated

    def evaluation_slots(self, workers: int) -> int:
        """Return the number of slots of one evaluation, a multiple of the workers."""
        return evaluation_slots(self.validation, self.plan.micro_batch_clips, workers)

    def blocks(self, workers: int, first_step: int = 0) -> int:
        """Return the number of blocks for all that is left after step `first_step` and its evaluation, if any."""
        return self._stretches(workers, first_step)[-1].first_turn * workers

    def block(self, index: int, workers: int, first_step: int = 0) -> list[PlannedMicroBatch] | list[EvaluationBatch]:
        """Return the slots of block `index`: the next ones of one kind and shape for worker `index` modulo
        `workers`."""
        turn, worker = divmod(index, workers)
        stretches = self._stretches(workers, first_step)
        one = stretches[bisect.bisect_right(stretches, turn, key=lambda stretch: stretch.first_turn) - 1]
        number, turn = one.turns.find(turn - one.first_turn)
        first = one.first_slot + one.slots.before(number) + turn * self._together * workers + worker
        behind = min(first + self._together * workers, one.first_slot + one.slots.before(number + 1))
        return [self.slot(slot, workers, first_step) for slot in range(first, behind, workers)]  # type: ignore[return-value]

    @property
    def _together(self) -> int:
        return self.plan.micro_batches_per_block

    def slots(self, workers: int, first_step: int = 0) -> int:
        """Return the number of remaining slots."""
        return self._before(self.plan.steps, workers) - self._before(first_step, workers)

    def slot(self, index: int, workers: int, first_step: int = 0) -> PlannedMicroBatch | EvaluationBatch:
        """Return slot `index`, counted from after `first_step`; slot i belongs to worker i modulo `workers`."""
        in_run, scoring = self._before(first_step, workers) + index, self.evaluation_slots(workers)
        # The first evaluation that does not end before this slot.
        number = bisect.bisect_right(self._evaluated, in_run, key=lambda step: self._before(step, workers))
        trained = in_run - number * scoring
        step = self._evaluated[number]
        batch = trained - self.plan.slots(workers, end=step)
        if batch < 0:
            return self.plan.slot(trained, workers)
        return EvaluationBatch(step=step, samples=evaluation_slot(batch, self.validation, self.plan.micro_batch_clips))

    @functools.cached_property
    def _evaluated(self) -> list[int]:
        """The numbers of steps after which the network is scored."""
        epochs = [*range(self.evaluate_every, self.plan.epochs, self.evaluate_every), self.plan.epochs]
        return sorted({self.plan.first_step(epoch) for epoch in epochs} - {0})

    def _before(self, step: int, workers: int) -> int:
        """Return the number of slots before the next training slot once `step` steps are done and scored."""
        evaluations = bisect.bisect_right(self._evaluated, step)
        return self.plan.slots(workers, end=step) + evaluations * self.evaluation_slots(workers)

    @functools.lru_cache(maxsize=4)  # noqa: B019 - a schedule lives as long as its run
    def _stretches(self, workers: int, first_step: int) -> list[_Stretch]:
        """List the stretches and, last, where everything ends."""
        turn = slot = 0
        stretches, step = list[_Stretch](), first_step

        def add(slots: Cycle, total: int) -> None:
            nonlocal turn, slot
            turns = Cycle(tuple(-(-count // (workers * self._together)) for count in slots.counts))
            stretches.append(_Stretch(turn, slot, slots, turns))
            # The last round may be cut off by the end of the epoch, but never within a step.
            number, rest = slots.find(total)
            assert rest == 0
            turn, slot = turn + turns.before(number), slot + total

        for evaluated in self._evaluated[bisect.bisect_right(self._evaluated, first_step) :]:
            while step < evaluated:
                end, slots = self.plan.alike(step, evaluated, workers)
                add(slots, self.plan.slots(workers, step, end))
                step = end
            scoring = self.evaluation_slots(workers)
            add(Cycle((scoring,)), scoring)
        return [*stretches, _Stretch(turn, slot, Cycle((1,)), Cycle((1,)))]


class _Stretch(NamedTuple):
    """Steps with clips of one shape, or that take turns in the same way, or an evaluation: where it starts, and the
    slots and the turns of what it repeats. In a turn, every worker gets one block."""

    first_turn: int
    first_slot: int
    slots: Cycle
    turns: Cycle
