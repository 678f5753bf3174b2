"""Clips that grow during training: multigrid (Wu et al., A Multigrid Method for Efficiently Training Video Models, CVPR
2020). Pure; runs anywhere.

Short and small clips are cheap, so a step takes more of them: frames x pixels x clips of a step stay about the same. In
the *long cycle*, shapes change with the epochs, from small to the recipe's own, once for every learning rate. In the
*short cycle*, height and width change from step to step. Both, their factors, and the learning rate are those of the
published code (facebookresearch/SlowFast), except that every micro-batch keeps its number of clips: BatchNorm sees as
many as without multigrid, as in the published code, which splits larger batches for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import torch

from tpn_ray.data.plan import EpochShapes, Plan, StepShape
from tpn_ray.model.recognizer import check_clips
from tpn_ray.recipe import OptimConfig, Recipe
from tpn_ray.training import optim

LONG_CYCLE = ((0.25, math.sqrt(0.5)), (0.5, math.sqrt(0.5)), (0.5, 1.0), (1.0, 1.0))
"""Factors of frames, and of height and width."""
SHORT_CYCLE = (0.5, math.sqrt(0.5))
"""Factors of height and width, before the long cycle's own."""


@dataclass(frozen=True)
class _Phase:
    """Consecutive epochs of one shape and rate."""

    epochs: float
    shapes: tuple[StepShape, ...]
    batch: int
    drops: int


def grid_of(recipe: Recipe) -> tuple[EpochShapes, ...]:
    """Return the shapes of every epoch, or nothing without multigrid. Raises ConfigError for clips that are too small
    for the network."""
    if recipe.loop.multigrid == "off":
        return ()
    phases = _phases(recipe)
    scale = recipe.loop.epochs / sum(phase.epochs for phase in phases)
    ends, done = list[int](), 0.0
    for phase in phases:
        done += phase.epochs * scale
        ends.append(round(done))
    grid: list[EpochShapes] = []
    for phase, end in zip(phases, ends, strict=True):
        grid += [EpochShapes(shapes=phase.shapes, batch=phase.batch, drops=phase.drops)] * (end - len(grid))
    return tuple(grid)


def _phases(recipe: Recipe) -> list[_Phase]:
    loop, own = recipe.loop, recipe.optim
    long = LONG_CYCLE if loop.multigrid in ("long", "both") else LONG_CYCLE[-1:]
    each = [_shapes(recipe, time, space) for time, space in long]
    means = [Fraction(sum(shape.micro_batches for shape in shapes), len(shapes)) for shapes in each]
    bases = [shapes[-1].micro_batches // loop.micro_batches_per_step for shapes in each]
    milestones = own.milestones if own.schedule == "step" else ()
    bounds = [0.0, *(point if point < 1 else point / loop.epochs for point in milestones)]
    if not milestones:
        bounds.append(1.0)
    phases, iterations = list[_Phase](), 0.0
    for drops, (begin, end) in enumerate(pairwise(bounds)):
        # The shapes of a stage have equally many steps.
        epochs = [(end - begin) * float(mean / sum(means)) for mean in means]
        iterations += sum(some / float(mean) for some, mean in zip(epochs, means, strict=True))
        phases += [_Phase(*phase, drops) for phase in zip(epochs, each, bases, strict=True)]
    if milestones:
        # The last stage has the recipe's shape alone, and saves as many steps as those before it. In the long cycle,
        # the rate drops only in the middle of it.
        last, drops = (1 - bounds[-1]) * iterations / bounds[-1] * float(means[-1]), len(milestones)
        if len(long) > 1:
            phases.append(_Phase(last / 2, each[-1], bases[-1], drops - 1))
            last /= 2
        phases.append(_Phase(last, each[-1], bases[-1], drops))
    return phases


def _shapes(recipe: Recipe, time: float, space: float) -> tuple[StepShape, ...]:
    """Return the shapes of an epoch of the long cycle, the short cycle's smaller ones first."""
    clip, side_px, loop = recipe.clip, recipe.augment.crop_px, recipe.loop
    frames = max(1, round(clip.frames * time))
    short = [round(side_px * factor) for factor in SHORT_CYCLE] if loop.multigrid in ("short", "both") else []
    stride = clip.stride_frames * (clip.frames // frames if clip.sampling == "dense" else 1)
    shapes = []
    for side in (*short, round(side_px * space)):
        check_clips(recipe.model, torch.empty(1, recipe.clip.channels, frames, side, side, device="meta"))
        times = max(1, round(clip.frames * side_px**2 / (frames * side**2)))
        count = times * loop.micro_batches_per_step
        shapes.append(StepShape(micro_batches=count, frames=frames, stride_frames=stride, crop_px=side))
    return tuple(shapes)


def learning_rate(config: OptimConfig, plan: Plan, step: int, epochs: int) -> float:
    """Return the rate of a step of a plan with a grid, for a run of `epochs`: the schedule follows the epochs, whose
    numbers of steps differ, and is scaled with the batch of the long cycle."""
    epoch, within = plan.place(step)
    done = (epoch + within / (plan.first_step(epoch + 1) - plan.first_step(epoch))) / epochs
    now = plan.grid[epoch]
    if config.schedule != "step":
        return now.batch * optim.learning_rate(config, done, 1, epochs)
    warmup = config.warmup if config.warmup < 1 else config.warmup / epochs
    rising = 0.1 + 0.9 * done / warmup if done < warmup else 1.0
    return rising * config.lr * config.gamma**now.drops * now.batch
