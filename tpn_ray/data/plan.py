"""The plan of a run: which clips, in which order, in which micro-batch. Pure; runs anywhere.

The order is a pure function of (seed, epoch, dataset), so the only state to save is the number of completed steps.

One plan covers the whole run, one epoch after another. A *step* is one update of the weights. It consists of
micro-batches of fixed size; a micro-batch is the unit that BatchNorm sees and that is distributed to workers. How many
there are, and what their clips look like, may change from step to step (`Plan.grid`). A *slot* is one micro-batch as it
is streamed: steps are padded with empty slots so that every worker gets the same number; slot i goes to worker i modulo
the number of workers. A *block* is what one task makes: the next few slots of one worker.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tpn_ray.errors import ConfigError

Int64Array = NDArray[np.int64]

ClassBalance = Literal["none", "sqrt", "equal"]

BLOCK_CLIPS = 32
"""Number of clips that a block is filled up to: a task per micro-batch took a fifth of a core's time."""


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """What the clips of a step look like, and how many there are."""

    micro_batches: int
    """Micro-batches of the step, over all workers."""
    frames: int
    """Frames of a clip."""
    stride_frames: int
    """Distance between two of them, in frames of the video."""
    crop_px: int
    """Height and width of a clip."""


@dataclass(frozen=True, kw_only=True)
class EpochShapes:
    """The shapes that the steps of an epoch have in turns, and what the learning rate makes of them."""

    shapes: tuple[StepShape, ...]
    batch: int = 1
    """Factor of the learning rate, by the linear rule: how much larger the batch is than the recipe's."""
    drops: int = 0
    """How often the rate has dropped, for the schedule `step`."""


@dataclass(frozen=True, kw_only=True)
class PlannedMicroBatch:
    """The clips of one slot; arrays have shape (micro_batch_clips,), with -1 if the slot is empty."""

    step: int
    epoch: int
    positions: Int64Array
    samples: Int64Array
    number: int = 0
    """Index in its step; for an empty slot, beyond those of the step."""
    shape: StepShape | None = None
    """What its clips look like; None: as the recipe says."""


class Cycle(NamedTuple):
    """Something that steps have in turns: the first step `counts[0]` of it, and so on, and again from the beginning."""

    counts: tuple[int, ...]

    def before(self, steps: int) -> int:
        """Return how many there are in the first `steps` steps."""
        rounds, rest = divmod(steps, len(self.counts))
        return rounds * sum(self.counts) + sum(self.counts[:rest])

    def find(self, index: int) -> tuple[int, int]:
        """Return the step that has number `index` of them, and its place among those of that step."""
        rounds, rest = divmod(index, sum(self.counts))
        for place, count in enumerate(self.counts):
            if rest < count:
                return rounds * len(self.counts) + place, rest
            rest -= count
        raise AssertionError(f"{index} is in no step")

    def fitting(self, total: int) -> int:
        """Return how many steps `total` are enough for."""
        return self.find(total)[0]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained on, and when. Clips of an epoch that do not fill a step are left out of that epoch."""

    samples: int
    """Number of videos."""
    seed: int
    epochs: int
    batch_clips: int
    """Clips per step, over all workers."""
    micro_batch_clips: int
    groups: tuple[int, ...] = ()
    """Number of videos in each row group of a prepared dataset (`Manifest.group_sizes`), in stored order; () for video
    files."""
    window_groups: int = 64
    """Number of row groups that are shuffled together; those of a window are read in the same part of the epoch."""
    clips_per_video: int = 1
    """Number of consecutive clips from each video in an epoch; the video is opened once for all of them."""
    balance: ClassBalance = "none"
    """How often the videos of a class are seen in an epoch."""
    classes: bytes = b""
    """The class of every video, as int64, if classes are to be balanced."""
    grid: tuple[EpochShapes, ...] = ()
    """The shapes of every epoch's steps, at least one entry for each epoch; () if all steps are as the recipe says."""

    def __post_init__(self) -> None:
        if self.batch_clips % self.micro_batch_clips:
            raise ConfigError(
                f"batch_clips={self.batch_clips} is not a multiple of micro_batch_clips={self.micro_batch_clips}"
            )
        if self.clips_per_video < 1 or self.micro_batch_clips % self.clips_per_video:
            raise ConfigError(
                f"micro_batch_clips={self.micro_batch_clips} is not a multiple of "
                f"clips_per_video={self.clips_per_video}"
            )
        largest = max((self._cycle(epoch).counts[0] for epoch in range(self.epochs)), default=0)
        if self.samples * self.clips_per_video < largest * self.micro_batch_clips:
            raise ConfigError(
                f"{self.samples} training videos do not fill one batch of {largest * self.micro_batch_clips} clips; "
                "give more videos or a smaller --loop.batch-clips"
            )
        if self.groups and sum(self.groups) != self.samples:
            raise ConfigError(f"row groups of {sum(self.groups)} videos in all are not the {self.samples} videos given")
        if self.window_groups < 1:
            raise ConfigError(f"window_groups={self.window_groups} must be at least 1")

    @property
    def steps(self) -> int:
        return self.first_step(self.epochs)

    def first_step(self, epoch: int) -> int:
        """Return the first step of an epoch; for the number of epochs, the number of steps."""
        return self._first_steps[epoch]

    def place(self, step: int) -> tuple[int, int]:
        """Return the epoch of a step, and the step's number in it; the end of the run is the beginning of an epoch."""
        epoch = bisect.bisect_right(self._first_steps, step) - 1
        return epoch, step - self._first_steps[epoch]

    def micro_batches(self, step: int) -> int:
        """Return the number of micro-batches of a step."""
        epoch, within = self.place(step)
        counts = self._cycle(epoch).counts
        return counts[within % len(counts)]

    def shape(self, step: int) -> StepShape | None:
        """Return what the clips of a step look like; None: as the recipe says."""
        epoch, within = self.place(step)
        return self.grid[epoch].shapes[within % len(self.grid[epoch].shapes)] if self.grid else None

    def alike(self, step: int, end: int, workers: int) -> tuple[int, Cycle]:
        """Return until which step, at most `end`, the steps from `step` on take turns in the same way, and the slots of
        each stretch of clips of one shape that results: one of all steps, or as many as there are steps."""
        if not self.grid:
            return end, Cycle((self.slots(workers, step, end),))
        epoch, within = self.place(step)
        end = min(end, self.first_step(epoch + 1))
        counts = self._cycle(epoch, workers).counts
        if len(counts) == 1:
            return end, Cycle((self.slots(workers, step, end),))
        first = within % len(counts)
        return end, Cycle(counts[first:] + counts[:first])

    def clips(self, step: int) -> int:
        """Return the number of clips in the first `step` steps, which is the position of the next one."""
        epoch, within = self.place(step)
        return (self._before[1][epoch] + self._cycle(epoch).before(within)) * self.micro_batch_clips

    def slots_per_step(self, workers: int, step: int = 0) -> int:
        """Return the number of micro-batches of a step, padded to a multiple of the workers."""
        return _padded(self.micro_batches(step), workers)

    def slots(self, workers: int, first_step: int = 0, end: int | None = None) -> int:
        """Return the number of slots from `first_step` to `end`, or to the end of the run."""
        return self._slots_before(self.steps if end is None else end, workers) - self._slots_before(first_step, workers)

    def blocks(self, workers: int, first_step: int = 0) -> int:
        """Return the number of blocks that carry those slots, the same for each worker."""
        return -(-self.slots(workers, first_step) // (workers * self.micro_batches_per_block)) * workers

    @property
    def micro_batches_per_block(self) -> int:
        """Number of a worker's consecutive micro-batches that are made and sent together."""
        return max(1, BLOCK_CLIPS // self.micro_batch_clips)

    def block(self, index: int, workers: int, first_step: int = 0) -> list[PlannedMicroBatch]:
        """Return the slots of block `index`, which holds the next ones of worker `index` modulo `workers`.

        With a grid, `Schedule.block` makes blocks of clips of one shape.
        """
        assert not self.grid
        turn, worker = divmod(index, workers)
        first = turn * self.micro_batches_per_block * workers + worker
        behind = min(first + self.micro_batches_per_block * workers, self.slots(workers, first_step))
        return [self.slot(slot, workers, first_step) for slot in range(first, behind, workers)]

    def slot(self, index: int, workers: int, first_step: int = 0) -> PlannedMicroBatch:
        """Return the clips of slot `index`, counted from the beginning of `first_step`."""
        in_run = self._slots_before(first_step, workers) + index
        before = self._before[workers]
        epoch = bisect.bisect_right(before, in_run) - 1
        within, number = self._cycle(epoch, workers).find(in_run - before[epoch])
        step = self._first_steps[epoch] + within
        shape = self.shape(step)
        if number >= self.micro_batches(step):
            nothing = np.full(self.micro_batch_clips, -1, dtype=np.int64)
            return PlannedMicroBatch(
                step=step, epoch=epoch, positions=nothing, samples=nothing, number=number, shape=shape
            )
        start = (self._cycle(epoch).before(within) + number) * self.micro_batch_clips
        places = np.arange(start, start + self.micro_batch_clips, dtype=np.int64)
        groups = self.groups or self.samples
        order = epoch_order(self.seed, epoch, groups, self.window_groups, self.balance, self.classes)
        return PlannedMicroBatch(
            step=step,
            epoch=epoch,
            positions=self.clips(self._first_steps[epoch]) + places,
            samples=order[places // self.clips_per_video],
            number=number,
            shape=shape,
        )

    def _cycle(self, epoch: int, workers: int = 1) -> Cycle:
        """Return the slots of an epoch's steps; with one worker, these are its micro-batches."""
        if not self.grid:
            counts: tuple[int, ...] = (self.batch_clips // self.micro_batch_clips,)
        else:
            counts = tuple(shape.micro_batches for shape in self.grid[min(epoch, len(self.grid) - 1)].shapes)
        return Cycle(tuple(_padded(count, workers) for count in counts))

    @functools.cached_property
    def _first_steps(self) -> list[int]:
        """The first step of every epoch, and the end of the last one."""
        whole = self.samples * self.clips_per_video // self.micro_batch_clips
        return [0, *itertools.accumulate(self._cycle(epoch).fitting(whole) for epoch in range(self.epochs))]

    @functools.cached_property
    def _before(self) -> _SlotsBefore:
        return _SlotsBefore(self)

    def _slots_before(self, step: int, workers: int) -> int:
        epoch, within = self.place(step)
        return self._before[workers][epoch] + self._cycle(epoch, workers).before(within)


class _SlotsBefore(dict[int, list[int]]):
    """Number of workers -> number of slots before each epoch."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan

    def __missing__(self, workers: int) -> list[int]:
        plan = self._plan
        firsts = plan._first_steps
        each = (plan._cycle(e, workers).before(firsts[e + 1] - firsts[e]) for e in range(plan.epochs))
        self[workers] = [0, *itertools.accumulate(each)]
        return self[workers]


def _padded(count: int, workers: int) -> int:
    return -(-count // workers) * workers


@functools.lru_cache(maxsize=4)
def epoch_order(
    seed: int,
    epoch: int,
    groups: int | tuple[int, ...],
    window_groups: int = 64,
    balance: ClassBalance = "none",
    classes: bytes = b"",
) -> Int64Array:
    """Return the videos in the order of one epoch, as a read-only array.

    For video files (`groups` is their number), it is a full permutation. For prepared videos (`groups` are the sizes of
    their row groups), the groups are permuted, and rows are permuted within each window of `window_groups` groups.
    Storage then sees reads that stay close together. Shards hold random videos from the start (`tpn_ray.prepare`), so a
    batch is still a random sample. With a `balance`, a video can occur several times, or not at all.
    """
    times = None if balance == "none" else balanced_times(seed, epoch, balance, np.frombuffer(classes, dtype=np.int64))
    random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    if isinstance(groups, int):
        order = random.permutation(groups if times is None else np.arange(groups).repeat(times)).astype(np.int64)
    else:
        ends = np.cumsum(groups)
        shuffled = random.permutation(len(groups))
        windows = [shuffled[at : at + window_groups] for at in range(0, len(groups), window_groups)]
        rows_of = [np.concatenate([np.arange(ends[g] - groups[g], ends[g]) for g in window]) for window in windows]
        if times is not None:
            rows_of = [rows.repeat(times[rows]) for rows in rows_of]
        order = np.concatenate([random.permutation(rows) for rows in rows_of]).astype(np.int64)
    order.flags.writeable = False
    return order


def balanced_times(seed: int, epoch: int, balance: ClassBalance, classes: Int64Array) -> Int64Array:
    """Return how often each video is seen in an epoch, which has as many clips as there are videos.

    A class has a share of them, and its videos take turns, in an order drawn once: after any number of epochs, no two
    videos of a class differ by more than one. Shares are square roots at most, which all machines round alike.
    """
    counts = np.bincount(classes)
    weights = np.where(counts > 0, np.sqrt(counts) if balance == "sqrt" else 1.0, 0.0)
    exact = len(classes) * weights / weights.sum()
    shares = np.floor(exact).astype(np.int64)
    largest = np.argsort(shares - exact, kind="stable")  # the largest remainders get what is left
    shares[largest[: len(classes) - shares.sum()]] += 1
    random = np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, 0, 0, 2**62]))
    drawn = random.permutation(len(classes))
    times = np.zeros(len(classes), dtype=np.int64)
    for label in np.flatnonzero(counts):
        turns = drawn[classes[drawn] == label]
        np.add.at(times, turns[np.arange(epoch * shares[label], (epoch + 1) * shares[label]) % len(turns)], 1)
    return times


def evaluation_slots(samples: int, batch_clips: int, workers: int) -> int:
    """Return how many batches cover every video once, padded so that every worker gets the same number."""
    batches = -(-samples // batch_clips)
    return -(-batches // workers) * workers


def evaluation_slot(index: int, samples: int, batch_clips: int) -> Int64Array:
    """Return the videos of batch `index` in stored order, with -1 where none are left."""
    places = np.arange(index * batch_clips, (index + 1) * batch_clips, dtype=np.int64)
    return np.where(places < samples, places, -1)
