from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tpn_ray.clips import rows
from tpn_ray.clips.augment import AugmentConfig
from tpn_ray.clips.rows import Rows
from tpn_ray.data.plan import Plan, PlannedMicroBatch
from tpn_ray.data.schedule import Schedule
from tpn_ray.errors import TrainingError
from tpn_ray.training.events import BadVideos, Event
from tpn_ray.training.stream import Stream

SCHEDULE = Schedule(
    plan=Plan(samples=12, seed=0, epochs=2, batch_clips=6, micro_batch_clips=2), validation=3, evaluate_every=1
)
"""Two steps of three micro-batches an epoch, then two batches of validation videos."""


def block_of(slot: int, workers: int, bad: int | None = None) -> Rows:
    """What the data workers make of a slot: clips whose pixels are the number of the video."""
    part = SCHEDULE.slot(slot, workers)
    samples = part.samples
    reasons = np.array(["empty" if bad is not None and sample == bad else "" for sample in samples], dtype=np.str_)
    return {
        rows.POSITION: part.positions if isinstance(part, PlannedMicroBatch) else samples,
        rows.SAMPLE: samples,
        rows.CLIP: (np.maximum(samples, 0)[:, None, None, None, None] * np.ones((1, 1, 2, 2, 3))).astype(np.uint8),
        rows.LABELS: np.maximum(samples, 0)[:, None],
        rows.REASON: reasons,
        rows.MESSAGE: reasons,
    }


def stream_of(
    blocks: Iterator[Rows], rank: int, workers: int, told: list[Event], augment: AugmentConfig | None = None
) -> Stream:
    return Stream(
        blocks,
        SCHEDULE,
        first_step=0,
        rank=rank,
        workers=workers,
        crop_px=2,
        device="cpu",
        tell=told.append,
        augment=augment,
    )


def test_what_is_drawn_here_belongs_to_the_place_in_the_plan() -> None:
    """Any number of workers changes a clip alike, and a bad video next to it changes nothing."""
    made: list[dict[int, list[int]]] = []
    for workers, bad in ((1, None), (2, None), (1, 3)):
        made.append({})
        for rank in range(workers):
            blocks = (block_of(slot, workers, bad) for slot in range(rank, SCHEDULE.slots(workers), workers))
            stream = stream_of(blocks, rank, workers, [], AugmentConfig(rand_operations=2))
            for micro_batch in stream.step():
                for video, clip in zip(micro_batch.labels[:, 0].tolist(), micro_batch.clips, strict=True):
                    made[-1][video] = clip.flatten().tolist()
    assert made[0] == made[1]
    assert made[2] == {video: clip for video, clip in made[0].items() if video != 3}
    assert any(clip != [video] * 12 for video, clip in made[0].items())


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_all_workers_together_get_every_clip_and_every_validation_video_once(workers: int) -> None:
    seen: dict[int, list[int]] = {}
    numbers: dict[int, list[int]] = {}
    scored: list[int] = []
    for rank in range(workers):
        blocks = (block_of(slot, workers) for slot in range(rank, SCHEDULE.slots(workers), workers))
        stream = stream_of(blocks, rank, workers, [])
        for step in range(4):
            for micro_batch in stream.step():
                seen.setdefault(step, []).extend(micro_batch.clips[:, 0, 0, 0, 0].tolist())
                numbers.setdefault(step, []).append(micro_batch.number)
            if step % 2 == 1:
                scored += [label for batch in stream.evaluation() for label in batch.labels[:, 0].tolist()]
    assert all(sorted(numbers[step]) == [0, 1, 2] for step in range(4))
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == list(range(12))
    assert sorted(scored) == [0, 0, 1, 1, 2, 2]


def test_bad_and_filling_clips_are_left_out_and_bad_ones_told() -> None:
    first = int(SCHEDULE.plan.slot(0, 1).samples[0])
    told: list[Event] = []
    stream = stream_of((block_of(slot, 1, bad=first) for slot in range(8)), 0, 1, told)
    assert [len(micro_batch.labels) for micro_batch in stream.step()] == [1, 2, 2]
    assert told == [BadVideos(split="train", found=((first, "empty", "empty"),))]
    stream.step()
    assert sum(len(batch.labels) for batch in stream.evaluation()) == 3 - (first < 3)


def test_a_broken_order_and_an_early_end_are_refused() -> None:
    with pytest.raises(TrainingError, match="the order was broken"):
        stream_of(iter([block_of(1, 1)]), 0, 1, []).step()
    with pytest.raises(TrainingError, match="the data ended at step 0"):
        stream_of(iter([block_of(0, 1)]), 0, 1, []).step()
