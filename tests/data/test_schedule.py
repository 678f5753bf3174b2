from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpn_ray.data.plan import EpochShapes, Plan, PlannedMicroBatch, StepShape
from tpn_ray.data.schedule import EvaluationBatch, Schedule
from tpn_ray.errors import ConfigError


def shape_of(count: int) -> StepShape:
    return StepShape(micro_batches=count, frames=8, stride_frames=2, crop_px=32 * count)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    micro, per_step = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    batch = micro * per_step
    plan = Plan(
        samples=draw(st.integers(batch, 4 * batch)),
        seed=1,
        epochs=draw(st.integers(1, 4)),
        batch_clips=batch,
        micro_batch_clips=micro,
    )
    if draw(st.booleans()):
        counts = st.lists(st.integers(1, per_step), min_size=1, max_size=3)
        epochs = draw(st.lists(counts, min_size=plan.epochs, max_size=plan.epochs + 1))
        # The first step of a cycle is its largest, so that every epoch has one.
        cycles = [sorted(epoch, reverse=True) for epoch in epochs]
        plan = dataclasses.replace(plan, grid=tuple(EpochShapes(shapes=tuple(map(shape_of, one))) for one in cycles))
    return Schedule(plan=plan, validation=draw(st.integers(1, 9)), evaluate_every=draw(st.integers(1, 5)))


def expected(schedule: Schedule, workers: int, first_step: int) -> list[tuple[object, ...]]:
    """The stream spelled out: steps one after the other, each followed by its evaluation where one is due."""
    plan, stream = schedule.plan, list[tuple[object, ...]]()
    for step in range(first_step, plan.steps):
        slots = [plan.slot(i, workers, step) for i in range(plan.slots_per_step(workers, step))]
        stream += [("train", step, tuple(slot.positions.tolist())) for slot in slots]
        epoch, within = plan.place(step + 1)
        if within == 0 and (epoch % schedule.evaluate_every == 0 or epoch == plan.epochs):
            size, padded = plan.micro_batch_clips, schedule.evaluation_slots(workers)
            videos = [*range(schedule.validation), *[-1] * (padded * size - schedule.validation)]
            stream += [("val", step + 1, tuple(videos[i * size : (i + 1) * size])) for i in range(padded)]
    return stream


def plain(slot: PlannedMicroBatch | EvaluationBatch) -> tuple[object, ...]:
    if isinstance(slot, PlannedMicroBatch):
        return ("train", slot.step, tuple(slot.positions.tolist()))
    return ("val", slot.step, tuple(slot.samples.tolist()))


@given(schedules(), st.integers(1, 4), st.data())
def test_the_stream_from_any_step_with_any_number_of_workers(
    schedule: Schedule, workers: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, schedule.plan.steps))
    stream = expected(schedule, workers, first)
    assert schedule.slots(workers, first) == len(stream)
    assert [plain(schedule.slot(i, workers, first)) for i in range(len(stream))] == stream
    turns = schedule.blocks(workers, first) // workers
    assert turns * workers == schedule.blocks(workers, first)
    shares: list[list[tuple[object, ...]]] = [[] for _ in range(workers)]
    for turn in range(turns):
        blocks = [schedule.block(turn * workers + worker, workers, first) for worker in range(workers)]
        assert len({(len(block), type(block[0])) for block in blocks}) == 1  # else the split is no round-robin
        assert all(len({type(slot) for slot in block}) == 1 for block in blocks)
        assert all(len({getattr(slot, "shape", None) for slot in block}) == 1 for block in blocks)
        assert len(blocks[0]) <= schedule.plan.micro_batches_per_block
        for share, block in zip(shares, blocks, strict=True):
            share.extend(plain(slot) for slot in block)
    assert shares == [stream[worker::workers] for worker in range(workers)]
    scored = {int(str(kind[1])) for kind in stream if kind[0] == "val"}
    assert scored == {step for step in range(first + 1, schedule.plan.steps + 1) if schedule.is_evaluated(step)}


def test_nonsense_is_refused() -> None:
    plan = Plan(samples=4, seed=0, epochs=1, batch_clips=2, micro_batch_clips=2)
    with pytest.raises(ConfigError, match="validation=0"):
        Schedule(plan=plan, validation=0, evaluate_every=1)
