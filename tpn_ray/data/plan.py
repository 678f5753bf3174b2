"""The plan of a run: which clips, in which order, in which micro-batch. Pure; runs anywhere.

The order is a pure function of (seed, epoch, dataset), so the only state to save is the number of completed steps.

One plan covers the whole run, one epoch after another. A *step* is one update of the weights. It consists of
`micro_batches_per_step` micro-batches of fixed size; a micro-batch is the unit that BatchNorm sees and that is
distributed to workers. A *slot* is one micro-batch as it is streamed: steps are padded with empty slots so that every
worker gets the same number; slot i goes to worker i modulo the number of workers. A *block* is what one task makes: the
next few slots of one worker.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tpn_ray.errors import ConfigError

Int64Array = NDArray[np.int64]

ClassBalance = Literal["none", "sqrt", "equal"]

BLOCK_CLIPS = 32
"""Number of clips that a block is filled up to: a task per micro-batch took a fifth of a core's time."""


@dataclass(frozen=True, kw_only=True)
class PlannedMicroBatch:
    """The clips of one slot; arrays have shape (micro_batch_clips,), with -1 if the slot is empty."""

    step: int
    epoch: int
    positions: Int64Array
    samples: Int64Array


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
        if self.samples * self.clips_per_video < self.batch_clips:
            raise ConfigError(
                f"{self.samples} training videos do not fill one batch of {self.batch_clips} clips; "
                "give more videos or a smaller --loop.batch-clips"
            )
        if self.groups and sum(self.groups) != self.samples:
            raise ConfigError(f"row groups of {sum(self.groups)} videos in all are not the {self.samples} videos given")
        if self.window_groups < 1:
            raise ConfigError(f"window_groups={self.window_groups} must be at least 1")

    @property
    def micro_batches_per_step(self) -> int:
        return self.batch_clips // self.micro_batch_clips

    @property
    def steps_per_epoch(self) -> int:
        return self.samples * self.clips_per_video // self.batch_clips

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    def slots_per_step(self, workers: int) -> int:
        """Return the number of micro-batches of a step, padded to a multiple of the workers."""
        return -(-self.micro_batches_per_step // workers) * workers

    def slots(self, workers: int, first_step: int = 0) -> int:
        """Return the number of slots from `first_step` to the end of the run."""
        return (self.steps - first_step) * self.slots_per_step(workers)

    def blocks(self, workers: int, first_step: int = 0) -> int:
        """Return the number of blocks that carry those slots, the same for each worker."""
        return -(-self.slots(workers, first_step) // (workers * self.micro_batches_per_block)) * workers

    @property
    def micro_batches_per_block(self) -> int:
        """Number of a worker's consecutive micro-batches that are made and sent together."""
        return max(1, BLOCK_CLIPS // self.micro_batch_clips)

    def block(self, index: int, workers: int, first_step: int = 0) -> list[PlannedMicroBatch]:
        """Return the slots of block `index`, which holds the next ones of worker `index` modulo `workers`."""
        turn, worker = divmod(index, workers)
        first = turn * self.micro_batches_per_block * workers + worker
        behind = min(first + self.micro_batches_per_block * workers, self.slots(workers, first_step))
        return [self.slot(slot, workers, first_step) for slot in range(first, behind, workers)]

    def slot(self, index: int, workers: int, first_step: int = 0) -> PlannedMicroBatch:
        """Return the clips of slot `index`, counted from the beginning of `first_step`."""
        in_run, in_step = divmod(index, self.slots_per_step(workers))
        step = first_step + in_run
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        if in_step >= self.micro_batches_per_step:
            nothing = np.full(self.micro_batch_clips, -1, dtype=np.int64)
            return PlannedMicroBatch(step=step, epoch=epoch, positions=nothing, samples=nothing)
        start = step_of_epoch * self.batch_clips + in_step * self.micro_batch_clips
        places = np.arange(start, start + self.micro_batch_clips, dtype=np.int64)
        clips_per_epoch = self.steps_per_epoch * self.batch_clips
        groups = self.groups or self.samples
        order = epoch_order(self.seed, epoch, groups, self.window_groups, self.balance, self.classes)
        return PlannedMicroBatch(
            step=step,
            epoch=epoch,
            positions=epoch * clips_per_epoch + places,
            samples=order[places // self.clips_per_video],
        )


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
