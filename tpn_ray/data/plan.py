"""The plan of a run: which clips, in which order, in which micro-batch. Pure; runs anywhere.

The order is a pure function of (seed, epoch, number of videos), so the only state to save is the number of steps done.
One plan covers the whole run, its epochs one after the other. A *step* is one update of the weights; it consists of
`micro_batches_per_step` micro-batches of fixed size, which is the unit that BatchNorm sees and that workers share out.
A *slot* is one micro-batch as it is streamed: steps are filled up with empty slots so that every worker gets equally
many; slot i goes to worker i modulo the number of workers.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tpn_ray.errors import ConfigError

Int64Array = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """The clips of one slot; arrays have shape (micro_batch_clips,), -1 where the slot is empty."""

    step: int
    epoch: int
    positions: Int64Array
    samples: Int64Array


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained on, and when. The clips of an epoch that do not fill a step are left out of that epoch."""

    samples: int
    """Number of videos."""
    seed: int
    epochs: int
    batch_clips: int
    """Clips per step, over all workers."""
    micro_batch_clips: int

    def __post_init__(self) -> None:
        if self.batch_clips % self.micro_batch_clips:
            raise ConfigError(
                f"batch_clips={self.batch_clips} is not a multiple of micro_batch_clips={self.micro_batch_clips}"
            )
        if self.samples < self.batch_clips:
            raise ConfigError(
                f"{self.samples} training videos do not fill one batch of {self.batch_clips} clips; "
                "give more videos or a smaller --loop.batch-clips"
            )

    @property
    def micro_batches_per_step(self) -> int:
        return self.batch_clips // self.micro_batch_clips

    @property
    def steps_per_epoch(self) -> int:
        return self.samples // self.batch_clips

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    def slots_per_step(self, workers: int) -> int:
        """Micro-batches of a step, filled up to a multiple of the workers."""
        return -(-self.micro_batches_per_step // workers) * workers

    def slots(self, workers: int, first_step: int = 0) -> int:
        """Slots from `first_step` to the end of the run."""
        return (self.steps - first_step) * self.slots_per_step(workers)

    def slot(self, index: int, workers: int, first_step: int = 0) -> MicroBatch:
        """The clips of slot `index`, counted from the beginning of `first_step`."""
        in_run, in_step = divmod(index, self.slots_per_step(workers))
        step = first_step + in_run
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        if in_step >= self.micro_batches_per_step:
            nothing = np.full(self.micro_batch_clips, -1, dtype=np.int64)
            return MicroBatch(step=step, epoch=epoch, positions=nothing, samples=nothing)
        start = step_of_epoch * self.batch_clips + in_step * self.micro_batch_clips
        places = np.arange(start, start + self.micro_batch_clips, dtype=np.int64)
        clips_per_epoch = self.steps_per_epoch * self.batch_clips
        return MicroBatch(
            step=step,
            epoch=epoch,
            positions=epoch * clips_per_epoch + places,
            samples=epoch_order(self.seed, epoch, self.samples)[places],
        )


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, samples: int) -> Int64Array:
    """The permutation of `samples` videos for one epoch (read-only)."""
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(samples).astype(np.int64)
    order.flags.writeable = False
    return order


def evaluation_slots(samples: int, batch_clips: int, workers: int) -> int:
    """How many batches cover every video once, filled up so that every worker gets equally many."""
    batches = -(-samples // batch_clips)
    return -(-batches // workers) * workers


def evaluation_slot(index: int, samples: int, batch_clips: int) -> Int64Array:
    """The videos of batch `index` in stored order; -1 where there are none left."""
    places = np.arange(index * batch_clips, (index + 1) * batch_clips, dtype=np.int64)
    return np.where(places < samples, places, -1)
