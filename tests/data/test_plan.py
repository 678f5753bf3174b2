"""The plan: complete, without repeats, the same wherever it is begun and however many workers share it."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpn_ray.data.plan import (
    ClassBalance,
    EpochShapes,
    Plan,
    StepShape,
    balanced_times,
    epoch_order,
    evaluation_slot,
    evaluation_slots,
)
from tpn_ray.errors import ConfigError

RARE = np.array([0] * 90 + [1] * 9 + [3])
"""Class 2 has no video."""


@pytest.mark.parametrize(("balance", "shares"), [("equal", {33, 34}), ("sqrt", {8, 22, 70})])
def test_classes_are_balanced_and_their_videos_take_turns(balance: ClassBalance, shares: set[int]) -> None:
    seen = np.zeros(100, dtype=np.int64)
    for epoch in range(7):
        times = balanced_times(3, epoch, balance, RARE)
        assert times.sum() == 100
        assert set(np.bincount(RARE, weights=times)[[0, 1, 3]].astype(int)) == shares
        seen += times
        for label in (0, 1, 3):
            assert np.ptp(seen[label == RARE]) <= 1
    assert seen.min() > 0


@pytest.mark.parametrize("groups", [(), (10,) * 10], ids=["files", "prepared"])
def test_a_balanced_plan_is_the_same_wherever_it_is_begun(groups: tuple[int, ...]) -> None:
    plan = Plan(
        samples=100,
        seed=3,
        epochs=3,
        batch_clips=20,
        micro_batch_clips=5,
        groups=groups,
        window_groups=2,
        balance="equal",
        classes=RARE.tobytes(),
    )
    whole = clips(plan, 1)
    for epoch in range(3):
        samples = [sample for step, _, sample in whole if step // 5 == epoch]
        assert np.array_equal(np.bincount(samples, minlength=100), balanced_times(3, epoch, "equal", RARE))
    for workers, first in ((3, 0), (2, 7)):
        assert clips(plan, workers, first) == [clip for clip in whole if clip[0] >= first]


plans = st.builds(
    lambda micro, per_step, steps, extra, epochs, seed: Plan(
        samples=micro * per_step * steps + extra % (micro * per_step),
        seed=seed,
        epochs=epochs,
        batch_clips=micro * per_step,
        micro_batch_clips=micro,
    ),
    micro=st.integers(1, 4),
    per_step=st.integers(1, 5),
    steps=st.integers(1, 4),
    extra=st.integers(0, 100),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)


GRID = tuple(
    EpochShapes(shapes=tuple(StepShape(micro_batches=n, frames=8, stride_frames=2, crop_px=32 // n) for n in counts))
    for counts in ((4, 2, 1), (3,), (2, 2, 1))
)


def clips(plan: Plan, workers: int, first_step: int = 0) -> list[tuple[int, int, int]]:
    """(step, position, sample) of all clips, in streamed order, without filling."""
    slots = (plan.slot(i, workers, first_step) for i in range(plan.slots(workers, first_step)))
    return [
        (slot.step, int(position), int(sample))
        for slot in slots
        for position, sample in zip(slot.positions, slot.samples, strict=True)
        if position >= 0
    ]


@given(plans, st.integers(1, 6))
def test_each_epoch_has_every_position_once_and_no_video_twice(plan: Plan, workers: int) -> None:
    seen = clips(plan, workers)
    assert [position for _, position, _ in seen] == list(range(plan.steps * plan.batch_clips))
    per_epoch = plan.first_step(1) * plan.batch_clips
    for epoch in range(plan.epochs):
        samples = [sample for _, _, sample in seen[epoch * per_epoch : (epoch + 1) * per_epoch]]
        assert len(set(samples)) == per_epoch
        assert set(samples) <= set(range(plan.samples))


@given(plans, st.integers(1, 6), st.integers(1, 6), st.data())
def test_what_is_left_is_the_same_for_any_start_and_number_of_workers(
    plan: Plan, before: int, after: int, data: st.DataObject
) -> None:
    first_step = data.draw(st.integers(0, plan.steps))
    assert clips(plan, after, first_step) == [clip for clip in clips(plan, before) if clip[0] >= first_step]


@given(plans, st.integers(1, 6))
def test_every_worker_gets_equally_many_slots(plan: Plan, workers: int) -> None:
    assert plan.slots(workers) % workers == 0
    assert plan.slots_per_step(workers) % workers == 0


@given(st.integers(8, 60), st.integers(1, 6), st.integers(1, 6), st.data())
def test_steps_of_several_shapes(samples: int, before: int, after: int, data: st.DataObject) -> None:
    """No video twice in an epoch, the same from any start for any number of workers, and shapes in their turns."""
    plan = Plan(samples=samples, seed=3, epochs=3, batch_clips=2, micro_batch_clips=2, grid=GRID)
    seen = clips(plan, before)
    assert [position for _, position, _ in seen] == list(range(plan.clips(plan.steps)))
    first_step = data.draw(st.integers(0, plan.steps))
    assert clips(plan, after, first_step) == [clip for clip in seen if clip[0] >= first_step]
    for epoch, (begin, end) in enumerate(pairwise(plan.first_step(number) for number in range(4))):
        videos = [sample for step, _, sample in seen if begin <= step < end]
        assert len(videos) == len(set(videos))
        shapes = GRID[epoch].shapes
        for step in range(begin, end):
            assert plan.place(step) == (epoch, step - begin)
            shape = shapes[(step - begin) % len(shapes)]
            assert plan.slot(0, after, step).shape == plan.shape(step) == shape
            assert sum(one == step for one, _, _ in seen) == 2 * shape.micro_batches == 2 * plan.micro_batches(step)
        following = shapes[(end - begin) % len(shapes)].micro_batches
        assert 2 * following > samples - len(videos), "the next step would have fitted"
    assert plan.place(plan.steps) == (3, 0)


def test_an_epoch_without_a_step_is_refused() -> None:
    with pytest.raises(ConfigError, match="7 training videos do not fill one batch of 8 clips"):
        Plan(samples=7, seed=3, epochs=3, batch_clips=2, micro_batch_clips=2, grid=GRID)


def test_epochs_and_seeds_differ() -> None:
    orders = [epoch_order(seed, epoch, 50).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 40), st.integers(0, 3))
def test_grouped_orders_are_permutations_that_keep_windows_together(groups: list[int], window: int, epoch: int) -> None:
    order = epoch_order(7, epoch, tuple(groups), window)
    assert sorted(order.tolist()) == list(range(sum(groups)))
    assert order.tolist() == epoch_order(7, epoch, tuple(groups), window).tolist()
    group_of = np.repeat(np.arange(len(groups)), groups)
    seen = group_of[order]
    first, last = {g: int(np.argmax(seen == g)) for g in seen}, {g: int(np.flatnonzero(seen == g)[-1]) for g in seen}
    most = window * max(groups)
    assert all(last[g] - first[g] < most for g in first), "a row group is read within one window"


def test_grouped_orders_shuffle_groups_and_rows() -> None:
    orders = [epoch_order(0, epoch, (4,) * 50, 8).tolist() for epoch in range(2)]
    assert orders[0] != orders[1]
    windows = [{row // 4 for row in order[:32]} for order in orders]
    assert all(len(window) == 8 for window in windows)
    assert windows[0] != windows[1]
    assert len({row // 4 for row in orders[0][:8]}) > 3, "rows of different groups come one after the other"


def test_a_plan_with_row_groups() -> None:
    plan = Plan(samples=20, seed=1, epochs=2, batch_clips=4, micro_batch_clips=2, groups=(5, 5, 10), window_groups=2)
    assert sorted(sample for _, _, sample in clips(plan, 1)) == sorted([*range(20), *range(20)])
    assert clips(plan, 2, 3) == [clip for clip in clips(plan, 3) if clip[0] >= 3]
    with pytest.raises(ConfigError, match="row groups of 6 videos in all are not the 20 videos"):
        Plan(samples=20, seed=1, epochs=2, batch_clips=4, micro_batch_clips=2, groups=(5, 1))
    with pytest.raises(ConfigError, match="window_groups=0"):
        Plan(samples=20, seed=1, epochs=2, batch_clips=4, micro_batch_clips=2, window_groups=0)


@given(plans, st.integers(1, 4), st.integers(1, 4))
def test_several_clips_of_a_video_stand_together(plan: Plan, per_video: int, workers: int) -> None:
    """Each video of an epoch gives all of its clips, in one micro-batch; what is left does not depend on the start."""
    sizes = {"batch_clips": plan.batch_clips * per_video, "micro_batch_clips": plan.micro_batch_clips * per_video}
    repeated = dataclasses.replace(plan, clips_per_video=per_video, **sizes)
    assert repeated.steps == plan.steps
    seen = clips(repeated, workers)
    assert [sample for _, _, sample in seen] == [
        s for _, _, sample in clips(plan, workers) for s in [sample] * per_video
    ]
    assert [position for _, position, _ in seen] == list(range(len(seen)))
    first_step = repeated.steps // 2
    assert clips(repeated, workers + 1, first_step) == [clip for clip in seen if clip[0] >= first_step]


def test_clips_of_a_video_are_not_torn_apart() -> None:
    with pytest.raises(ConfigError, match="micro_batch_clips=4 is not a multiple of clips_per_video=3"):
        Plan(samples=20, seed=1, epochs=2, batch_clips=4, micro_batch_clips=4, clips_per_video=3)


@given(st.integers(1, 50), st.integers(1, 8), st.integers(1, 4))
def test_evaluation_covers_every_video_once(samples: int, batch: int, workers: int) -> None:
    slots = evaluation_slots(samples, batch, workers)
    seen = np.concatenate([evaluation_slot(i, samples, batch) for i in range(slots)])
    assert slots % workers == 0
    assert seen[seen >= 0].tolist() == list(range(samples))


@pytest.mark.parametrize(("samples", "batch", "micro"), [(7, 8, 4), (16, 8, 3)])
def test_what_cannot_be_is_refused(samples: int, batch: int, micro: int) -> None:
    with pytest.raises(ConfigError, match=f"{samples} training videos|micro_batch_clips={micro}"):
        Plan(samples=samples, seed=0, epochs=1, batch_clips=batch, micro_batch_clips=micro)


@given(plans, st.integers(1, 6), st.data())
def test_blocks_give_each_worker_its_slots_in_order(plan: Plan, workers: int, data: st.DataObject) -> None:
    first_step = data.draw(st.integers(0, plan.steps - 1))
    made = [plan.block(number, workers, first_step) for number in range(plan.blocks(workers, first_step))]
    for worker in range(workers):
        blocks = made[worker::workers]
        got = [(mine.step, mine.positions.tolist(), mine.samples.tolist()) for block in blocks for mine in block]
        slots = (plan.slot(i, workers, first_step) for i in range(worker, plan.slots(workers, first_step), workers))
        assert got == [(slot.step, slot.positions.tolist(), slot.samples.tolist()) for slot in slots]
        assert [len(block) for block in blocks] == [len(block) for block in made[::workers]], "equal blocks"
