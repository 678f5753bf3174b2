"""THE SEARCH SPACE: field of the recipe -> distribution. Pure; runs anywhere.

A space is a function of the recipe it varies. Its keys are flat field names ("optim.lr"); a single entry of a tuple is
named by its index ("loss.lambdas.0"). A sample gives each field a value; one that makes no valid recipe never starts.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, get_args

import numpy as np
from optuna.distributions import FloatDistribution

from tpn_ray.errors import ConfigError
from tpn_ray.model.tpn import Flow
from tpn_ray.names import no_such
from tpn_ray.recipe import Recipe, flat, from_plain, replace_fields
from tpn_ray.tuning.distributions import Distribution, at, choice, edges, from_json, parse, written

Space = dict[str, Distribution]
"""Flat field name -> its distribution."""
Sample = dict[str, Any]
"""Flat field name -> its value."""

TRIES = 200
"""Draws of the other fields before a value counts as one that never makes a valid recipe."""


def fitting_alphas(levels: int, frames: int) -> list[tuple[int, ...]]:
    """Return the temporal rates that fit a clip: powers of two up to its frames, never falling from level to level."""
    rates = [2**power for power in range(frames.bit_length()) if 2**power <= frames]
    return [alpha for alpha in product(rates, repeat=levels) if list(alpha) == sorted(alpha)]


def lambda_alpha(recipe: Recipe) -> Space:
    """Vary the weight of each auxiliary loss, and the temporal rate of each level."""
    heads = range(recipe.model.auxiliary_count)
    space: Space = {f"loss.lambdas.{i}": FloatDistribution(0.05, 2.0, log=True) for i in heads}
    if recipe.model.neck == "tpn":
        frames = recipe.clip.frames // max(recipe.model.rates, default=1)
        space["model.alpha"] = choice(tuple(fitting_alphas(len(recipe.model.alpha), max(frames, 1))))
    return space


def schedule(recipe: Recipe) -> Space:
    """Vary the learning rate, its schedule, and weight decay. Milestones and gamma matter only for `step`."""
    optim = recipe.optim
    decay = optim.weight_decay or 1e-4
    return {
        "optim.lr": FloatDistribution(optim.lr / 10, optim.lr * 3, log=True),
        "optim.schedule": choice(("step", "cosine", "one_cycle")),
        "optim.warmup": FloatDistribution(0.0, 0.2),
        "optim.milestones": choice(((0.5, 0.8333), (0.6667, 0.8333), (0.75, 0.9))),
        "optim.gamma": FloatDistribution(0.05, 0.5, log=True),
        "optim.weight_decay": FloatDistribution(decay / 10, decay * 10, log=True),
    }


def flow_and_levels(recipe: Recipe) -> Space:
    """Vary how the pyramid's levels inform each other, and which stages they are."""
    if recipe.model.neck != "tpn":
        raise ConfigError("flow_and_levels varies the pyramid, and model.neck='none' has none")
    space: Space = {"model.flow": choice(get_args(Flow))}
    if not recipe.model.rates:
        below = [stage for stage in recipe.model.spec.stages if stage < recipe.model.levels[-1]]
        space["model.levels"] = choice(tuple((*below[i:], recipe.model.levels[-1]) for i in range(len(below))))
    return space


def everything(recipe: Recipe) -> Space:
    """Vary lambda, alpha, the schedule, flow, and levels."""
    pyramid = flow_and_levels(recipe) if recipe.model.neck == "tpn" else {}
    return {**lambda_alpha(recipe), **schedule(recipe), **pyramid}


def nothing(recipe: Recipe) -> Space:
    """Vary nothing but the fields varied by name."""
    return {}


SPACES: dict[str, Callable[[Recipe], Space]] = {
    "lambda_alpha": lambda_alpha,
    "schedule": schedule,
    "flow_and_levels": flow_and_levels,
    "all": everything,
    "none": nothing,
}


def space(name: str, recipe: Recipe, varied: Sequence[str] = ()) -> Space:
    """Return the named space (or several, joined by +) around a recipe, plus fields `varied` as FIELD=DISTRIBUTION.

    Raises ConfigError for an unknown name or field, and for a value with which no sample makes a valid recipe.
    """
    fields: Space = {}
    for part in name.split("+"):
        if part not in SPACES:
            raise ConfigError(no_such("space", part, SPACES))
        fields |= SPACES[part](recipe)
    for text in varied:
        field, equals, distribution = text.partition("=")
        if not equals:
            raise ConfigError(f"--vary {text!r} must be FIELD=DISTRIBUTION, such as optim.lr=loguniform(0.01,1)")
        fields[field.strip().replace("-", "_")] = parse(distribution)
    if not fields:
        raise ConfigError("nothing is varied: give a --space, or --vary FIELD=DISTRIBUTION")
    check(recipe, fields)
    return fields


def check(recipe: Recipe, fields: Space) -> None:
    """Refuse a space with an unknown field, or with a value that never makes a valid recipe whatever the others are."""
    for name, distribution in fields.items():
        for value in edges(distribution):
            reason = problem(recipe, {name: value})
            others = draws(fields, seed=0, number=0)
            for _ in range(TRIES):
                if not reason:
                    break
                reason = problem(recipe, {**next(others), name: value}) and reason
            if reason:
                raise ConfigError(f"{name}={value!r} of {written(distribution)} never makes a recipe: {reason}")


def draws(fields: Space, *, seed: int, number: int) -> Iterator[Sample]:
    """Yield draws for trial `number`, without end: a pure function of the seed and the number, not of other trials."""
    random = np.random.Generator(np.random.Philox(key=[seed, number]))
    while True:
        yield {name: at(distribution, random.random()) for name, distribution in fields.items()}


def problem(recipe: Recipe, sample: Mapping[str, Any]) -> str:
    """Return why a sample makes no recipe that can be trained; empty if it does."""
    try:
        changed = apply(recipe, sample)
        if from_plain(dataclasses.asdict(changed)) != changed:
            return "a value has the wrong type"
    except (ConfigError, TypeError) as error:
        return str(error)
    model, frames = changed.model, changed.clip.frames
    if model.neck == "tpn" and model.alpha[-1] * max(model.rates, default=1) > frames:
        return f"alpha={model.alpha} pools more frames than the {frames} of a clip"
    return ""


def apply(recipe: Recipe, sample: Mapping[str, Any]) -> Recipe:
    """Return the recipe with a sample's values. Raises ConfigError if they do not fit it.

    If the sample changes the number of levels, alpha and lambda follow at the lower end: a new level gets the rate and
    the weight of the lowest one.
    """
    known = flat(recipe)
    changes: dict[str, Any] = {}
    for name, value in sample.items():
        entry = re.fullmatch(r"(.+)\.(\d+)", name)
        if entry and entry[1] in known:
            values = list(changes.get(entry[1], known[entry[1]]))
            if int(entry[2]) >= len(values):
                raise ConfigError(f"{name}: {entry[1]}={tuple(values)} has only {len(values)} entries")
            values[int(entry[2])] = value
            changes[entry[1]] = tuple(values)
        else:
            changes[name] = from_json(value)
    if "model.levels" in changes and isinstance(changes["model.levels"], tuple) and not recipe.model.rates:
        depth = len(changes["model.levels"])
        for name, length in (("model.alpha", depth), ("loss.lambdas", depth - 1)):
            changes[name] = _as_long(changes.get(name, known[name]), length)
    return replace_fields(recipe, changes)


def _as_long(values: tuple[Any, ...], length: int) -> tuple[Any, ...]:
    """Return the last `length` values, padded in front with the first value."""
    return (values[:1] * (length - len(values)) + values)[max(0, len(values) - length) :]


STEP_ONLY = ("optim.milestones", "optim.gamma")


def active(recipe: Recipe, sample: Sample) -> Sample:
    """Return the part of a sample that has an effect: milestones and gamma have none unless the schedule is `step`."""
    steps = sample.get("optim.schedule", recipe.optim.schedule) == "step"
    return {name: value for name, value in sample.items() if steps or name not in STEP_ONLY}
