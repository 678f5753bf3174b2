"""Clips that grow during training: the published schedule, and steps from any point on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tpn_ray import recipes
from tpn_ray.clips.rows import Rows
from tpn_ray.data.plan import Plan, PlannedMicroBatch
from tpn_ray.data.schedule import EvaluationBatch, Schedule
from tpn_ray.data.tasks import ClipSource, evaluation_rows, training_rows
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import ConfigError
from tpn_ray.recipe import Recipe, replace_fields
from tpn_ray.training.multigrid import grid_of, learning_rate
from tpn_ray.training.run_plan import make_plan, make_schedule, recipe_for
from tpn_ray.training.step import Training
from tpn_ray.training.stream import Stream
from tpn_ray.training.writer import copied

KINETICS = replace_fields(
    recipes.k400_r50_16x4(), {"loop.multigrid": "both", "loop.epochs": 225, "optim.milestones": (0.5, 0.8333)}
)


def shapes(recipe: Recipe) -> list[tuple[int, list[tuple[int, int, int, int]], int, int]]:
    """Each run of equal epochs: how many, the shapes of their steps, the factor of the rate, and its drops."""
    found: list[tuple[int, list[tuple[int, int, int, int]], int, int]] = []
    for epoch in grid_of(recipe):
        turns = [(one.micro_batches, one.frames, one.stride_frames, one.crop_px) for one in epoch.shapes]
        what = (turns, epoch.batch, epoch.drops)
        if found and found[-1][1:] == what:
            found[-1] = (found[-1][0] + 1, *what)
        else:
            found.append((1, *what))
    return found


def test_the_published_schedule() -> None:
    """16 frames at stride 4 and 224 pixels in batches of 8 micro-batches; frames and pixels of a step stay the same."""
    found = shapes(KINETICS)
    cycles = [
        ([(128, 4, 16, 112), (64, 4, 16, 158), (64, 4, 16, 158)], 8),
        ([(64, 8, 8, 112), (32, 8, 8, 158), (32, 8, 8, 158)], 4),
        ([(64, 8, 8, 112), (32, 8, 8, 158), (16, 8, 8, 224)], 2),
        ([(32, 16, 4, 112), (16, 16, 4, 158), (8, 16, 4, 224)], 1),
    ]
    assert [one[1:3] for one in found] == [*cycles, *cycles, cycles[-1]]
    assert [one[3] for one in found] == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert sum(one[0] for one in found) == 225
    # Within a stage of the learning rate, epochs are as the mean batches: equally many steps of each shape.
    for epochs, mean in zip([one[0] for one in found[:4]], [32 / 3, 16 / 3, 14 / 3, 7 / 3], strict=True):
        assert epochs == pytest.approx(found[0][0] * mean / (32 / 3), abs=1)


@pytest.mark.parametrize(("cycle", "fewer"), [("long", 2.2), ("both", 3.3)])
def test_a_step_costs_about_the_same_and_there_are_fewer(cycle: str, fewer: float) -> None:
    recipe = replace_fields(KINETICS, {"loop.multigrid": cycle})
    grid = grid_of(recipe)
    plan = Plan(samples=240_000, seed=0, epochs=225, batch_clips=64, micro_batch_clips=8, grid=grid)
    plain = Plan(samples=240_000, seed=0, epochs=150, batch_clips=64, micro_batch_clips=8)
    full = 8 * 16 * 224**2
    for epoch in grid:
        for one in epoch.shapes:
            assert one.micro_batches * one.frames * one.crop_px**2 == pytest.approx(full, rel=0.02)
    assert plain.steps / plan.steps == pytest.approx(fewer, rel=0.1)


def test_the_rate_follows_batch_and_stage() -> None:
    plan = Plan(samples=2_000, seed=0, epochs=225, batch_clips=64, micro_batch_clips=8, grid=grid_of(KINETICS))
    rates = [learning_rate(KINETICS.optim, plan, plan.first_step(epoch), 225) for epoch in range(225)]
    assert rates[0] == pytest.approx(0.08)
    assert list(dict.fromkeys(round(rate, 7) for rate in rates)) == [
        0.08, 0.04, 0.02, 0.01, 0.008, 0.004, 0.002, 0.001, 0.0001,
    ]  # fmt: skip
    warm = replace_fields(KINETICS, {"optim.warmup": 0.1}).optim
    assert learning_rate(warm, plan, 0, 225) == pytest.approx(0.008)
    cosine = replace_fields(KINETICS, {"optim.schedule": "cosine"})
    plan = Plan(samples=2_000, seed=0, epochs=225, batch_clips=64, micro_batch_clips=8, grid=grid_of(cosine))
    assert learning_rate(cosine.optim, plan, 0, 225) == pytest.approx(0.08)
    assert learning_rate(cosine.optim, plan, plan.steps - 1, 225) < 1e-4


def test_the_short_cycle_alone_keeps_frames_and_milestones() -> None:
    recipe = replace_fields(KINETICS, {"loop.multigrid": "short"})
    assert [(one[0], one[2], one[3]) for one in shapes(recipe)] == [(112, 1, 0), (75, 1, 1), (38, 1, 2)]


def test_what_the_network_cannot_take_is_refused() -> None:
    small = replace_fields(KINETICS, {"model.levels": (5,), "model.rates": (1, 8), "model.alpha": (1, 1),
                                      "loss.lambdas": ()})  # fmt: skip
    with pytest.raises(ConfigError, match="clips of 4 frames are too short"):
        grid_of(small)
    with pytest.raises(ConfigError, match="multigrid='tall' must be"):
        replace_fields(KINETICS, {"loop.multigrid": "tall"})
    assert grid_of(recipes.toy()) == ()


def train(
    training: Training, schedule: Schedule, sources: dict[str, ClipSource], recipe: Recipe, workers: int, until: int
) -> list[tuple[int, ...]]:
    """Go on to a step with the streams of all workers, and return the shapes of the clips on the way."""
    seen, plan = list[tuple[int, ...]](), schedule.plan

    def blocks(rank: int, first_step: int) -> Iterator[Rows]:
        for index in range(rank, schedule.blocks(workers, first_step), workers):
            block = schedule.block(index, workers, first_step)
            trained = [slot for slot in block if isinstance(slot, PlannedMicroBatch)]
            scored = [slot.samples for slot in block if isinstance(slot, EvaluationBatch)]
            if trained:
                yield training_rows(sources["train"], trained)
            else:
                yield evaluation_rows(sources["val"], np.concatenate(scored), together=len(scored[0]))

    streams = [
        Stream(
            blocks(rank, training.step),
            schedule,
            first_step=training.step,
            rank=rank,
            workers=workers,
            crop_px=recipe.augment.crop_px,
            device="cpu",
            tell=lambda event: None,
        )
        for rank in range(workers)
    ]
    while training.step < until:
        step = training.step
        made = sorted((one for stream in streams for one in stream.step()), key=lambda one: one.number)
        assert len(made) == plan.micro_batches(step)
        seen.append((len(made), *made[0].clips.shape))
        rate = learning_rate(recipe.optim, plan, step, recipe.loop.epochs)
        training.train_step(made, plan.steps, plan.micro_batches(step), rate)
        if schedule.is_evaluated(training.step):
            clips = [one.clips.shape[1:3] for stream in streams for one in stream.evaluation() if len(one.labels)]
            assert set(clips) == {(recipe.clip.frames, recipe.augment.crop_px)}
    return seen


@pytest.mark.parametrize("developed", [True, False])
def test_a_run_that_goes_on_with_other_workers_ends_with_the_same_bits(developed: bool, manifest: Manifest) -> None:
    torch.set_num_threads(1)
    changes = {
        "clip.frames": 8, "augment.crop_px": 32, "augment.test_short_side_px": 32, "loop.multigrid": "both",
        "loop.epochs": 5, "loop.batch_clips": 2, "loop.micro_batch_clips": 2, "loop.ordered_reduction": True,
    }  # fmt: skip
    recipe = recipe_for(replace_fields(recipes.toy(), changes), manifest)
    sources = {
        split: ClipSource(
            manifest=manifest.select(split), clip=recipe.clip, augment=recipe.augment, seed=0, developed=developed
        )
        for split in ("train", "val")
    }
    plan = make_plan(recipe, manifest)
    schedule = make_schedule(recipe, manifest, plan.steps)
    straight, resumed = (
        Training(recipe.model, recipe.loss, recipe.optim, recipe.loop, "cpu") for _ in range(2)
    )  # fmt: skip
    stop = plan.first_step(3) + 1  # within a cycle
    seen = train(straight, schedule, sources, recipe, 1, stop)
    resumed.load(*copied(straight.state()), stop)
    seen += train(straight, schedule, sources, recipe, 1, plan.steps)
    assert set(seen) >= {(16, 2, 2, 16, 16, 3), (4, 2, 4, 23, 23, 3), (4, 2, 8, 16, 16, 3), (1, 2, 8, 32, 32, 3)}
    assert seen[stop:] == train(resumed, schedule, sources, recipe, 3, plan.steps)
    for one, other in zip(straight.state()[0].values(), resumed.state()[0].values(), strict=True):
        assert torch.equal(one, other)
