"""One worker's share of a run's clips, checked against the schedule. Runs on Ray Train workers, over any iterator."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from tpn_ray.clips import rows
from tpn_ray.clips.augment import AFTER_DECODING, AugmentConfig, generator
from tpn_ray.clips.develop import clips_of_blocks
from tpn_ray.clips.randaugment import rand_augment
from tpn_ray.clips.rows import Rows
from tpn_ray.clips.transfer import upload
from tpn_ray.data.plan import Int64Array, PlannedMicroBatch
from tpn_ray.data.schedule import EvaluationBatch, Schedule
from tpn_ray.errors import TrainingError
from tpn_ray.training.events import BadVideos, Event
from tpn_ray.training.step import MicroBatch


class Stream:
    """The blocks of one worker, in order. Every block must match the schedule."""

    def __init__(
        self,
        blocks: Iterator[Rows],
        schedule: Schedule,
        *,
        first_step: int,
        rank: int,
        workers: int,
        crop_px: int,
        colors: int = 3,
        device: str,
        tell: Callable[[Event], None],
        augment: AugmentConfig | None = None,
        seed: int = 0,
    ) -> None:
        """`augment` says what is done to training clips here, beside what the data workers did."""
        self._blocks, self._schedule, self._first_step = blocks, schedule, first_step
        self._workers, self._next_slot = workers, rank
        self._crop_px, self._colors, self._device, self._tell = crop_px, colors, device, tell
        self._augment, self._seed = augment or AugmentConfig(), seed
        self._block: Rows = {}
        self._held = self._taken = 0
        self.trained: list[tuple[int, Int64Array]] = []
        """Number and positions of the micro-batches of the last step."""

    def step(self) -> list[MicroBatch]:
        """Return this worker's micro-batches of the next step."""
        plan, crop_px = self._schedule.plan, self._crop_px
        blocks, self.trained = list[Rows](), []
        share, taken, epoch = 1, 0, 0
        while taken < share:
            slot, block = self._next()
            if not isinstance(slot, PlannedMicroBatch):
                raise TrainingError(f"step {slot.step}: validation videos came where a step was to be trained")
            share, taken = plan.slots_per_step(self._workers, slot.step) // self._workers, taken + 1
            epoch = slot.epoch
            if slot.positions[0] < 0:  # fills the workers' shares
                continue
            self.trained.append((slot.number, slot.positions))
            blocks.append(block)
            crop_px = slot.shape.crop_px if slot.shape else self._crop_px
        made = self._usable(blocks, [number for number, _ in self.trained], "train", crop_px)
        return [self._augmented(one, block, epoch) for one, block in zip(made, blocks, strict=True)]

    def evaluation(self) -> Iterator[MicroBatch]:
        """Yield this worker's share of the validation videos, where the schedule has them next."""
        for _ in range(self._schedule.evaluation_slots(self._workers) // self._workers):
            slot, block = self._next()
            if not isinstance(slot, EvaluationBatch):
                raise TrainingError(f"step {slot.step}: training clips came where videos were to be scored")
            yield from self._usable([block], [0], "val", self._crop_px)

    def _next(self) -> tuple[PlannedMicroBatch | EvaluationBatch, Rows]:
        slot = self._schedule.slot(self._next_slot, self._workers, self._first_step)
        self._next_slot += self._workers
        try:
            block = self._next_micro_batch()
        except StopIteration:
            raise TrainingError(f"the data ended at step {slot.step}, before the schedule did") from None
        if not np.array_equal(block[rows.SAMPLE], slot.samples) or (
            isinstance(slot, PlannedMicroBatch) and not np.array_equal(block[rows.POSITION], slot.positions)
        ):
            raise TrainingError(
                f"step {slot.step} got the videos {block[rows.SAMPLE].tolist()}, the schedule says "
                f"{slot.samples.tolist()}: the order was broken on the way"
            )
        return slot, block

    def _next_micro_batch(self) -> Rows:
        """Return the next rows of the current block, or the first of the next block."""
        if self._taken == self._held:
            self._block, self._taken = next(self._blocks), 0
            self._held = len(self._block[rows.SAMPLE])
        begin, self._taken = self._taken, self._taken + self._schedule.plan.micro_batch_clips
        return {name: column[begin : self._taken] for name, column in self._block.items()}

    def _usable(self, blocks: list[Rows], numbers: list[int], split: str, crop_px: int) -> list[MicroBatch]:
        """Return the clips of each block that are neither filler nor bad, on the device; report bad ones to the
        driver."""
        chosen = [self._good(block, split) for block in blocks]
        labels = [upload(block[rows.LABELS][good], self._device) for block, good in zip(blocks, chosen, strict=True)]
        if blocks and rows.PIXELS in blocks[0]:
            clips = clips_of_blocks(list(zip(blocks, chosen, strict=True)), crop_px, self._device, self._colors)
        else:
            each = zip(blocks, chosen, strict=True)
            clips = [upload(b[rows.CLIP] if good.all() else b[rows.CLIP][good], self._device) for b, good in each]
        return [MicroBatch(*made) for made in zip(numbers, clips, labels, strict=True)]

    def _good(self, block: Rows, split: str) -> NDArray[np.bool_]:
        bad = np.flatnonzero(block[rows.REASON] != "")
        if len(bad):
            found = ((int(block[rows.SAMPLE][i]), str(block[rows.REASON][i]), str(block[rows.MESSAGE][i])) for i in bad)
            self._tell(BadVideos(split=split, found=tuple(found)))
        good: NDArray[np.bool_] = (block[rows.REASON] == "") & (block[rows.SAMPLE] >= 0)
        return good

    def _augmented(self, micro_batch: MicroBatch, block: Rows, epoch: int) -> MicroBatch:
        """Apply what is drawn for the place of each usable clip in the plan."""
        clips = changed_after_decoding(micro_batch.clips, block, self._augment, self._seed, epoch)
        return micro_batch._replace(clips=clips)


def changed_after_decoding(
    clips: UInt8[Tensor, "n t h w c"], block: Rows, augment: AugmentConfig, seed: int, epoch: int
) -> UInt8[Tensor, "n t h w c"]:
    """Apply RandAugment to the usable clips of a block, as drawn for the place of each in the plan."""
    if not augment.rand_operations:
        return clips
    usable = (block[rows.REASON] == "") & (block[rows.SAMPLE] >= 0)
    places = zip(block[rows.SAMPLE][usable].tolist(), block[rows.POSITION][usable].tolist(), strict=True)
    randoms = [generator(seed, epoch, sample, AFTER_DECODING + position) for sample, position in places]
    return rand_augment(clips, augment, randoms)
