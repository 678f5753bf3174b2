"""THE SEARCH SPACE: field of the recipe -> distribution. Runs on the driver; `apply` anywhere.

A space is a function of the recipe it varies. Its keys are flat field names ("optim.lr"); one entry of a tuple is
named by its place ("loss.lambdas.0").
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

from ray import tune

from tpn_ray.errors import ConfigError
from tpn_ray.train.recipe import Recipe, flat, replace_fields

Space = dict[str, Any]
"""Flat field name -> a Ray Tune distribution."""


def fitting_alphas(levels: int, frames: int) -> list[tuple[int, ...]]:
    """Temporal rates that fit a clip: powers of two up to its frames, none smaller than that of the level below."""
    rates = [2**power for power in range(frames.bit_length()) if 2**power <= frames]
    return [alpha for alpha in product(rates, repeat=levels) if list(alpha) == sorted(alpha)]


def lambda_alpha(recipe: Recipe) -> Space:
    """The weight of each auxiliary loss, and the temporal rate of each level."""
    space: Space = {f"loss.lambdas.{i}": tune.loguniform(0.05, 2.0) for i in range(recipe.model.auxiliary_count)}
    if recipe.model.neck == "tpn":
        space["model.alpha"] = tune.choice(fitting_alphas(len(recipe.model.alpha), recipe.clip.frames))
    return space


def schedule(recipe: Recipe) -> Space:
    """The learning rate and how it changes over the run."""
    return {
        "optim.lr": tune.loguniform(recipe.optim.lr / 10, recipe.optim.lr * 3),
        "optim.schedule": tune.choice(["step", "cosine", "one_cycle"]),
        "optim.warmup": tune.uniform(0.0, 0.2),
    }


def everything(recipe: Recipe) -> Space:
    """Lambda, alpha and the schedule."""
    return {**lambda_alpha(recipe), **schedule(recipe)}


SPACES: dict[str, Callable[[Recipe], Space]] = {
    "lambda_alpha": lambda_alpha,
    "schedule": schedule,
    "all": everything,
}


def space(name: str, recipe: Recipe) -> Space:
    """The space of that name around a recipe."""
    if name not in SPACES:
        raise ConfigError(f"unknown space {name!r}; known: {', '.join(SPACES)}")
    return SPACES[name](recipe)


def apply(recipe: Recipe, sample: Mapping[str, Any]) -> Recipe:
    """The recipe with a sample's values; raises ConfigError where they do not fit it."""
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
            changes[name] = tuple(value) if isinstance(value, list) else value
    return replace_fields(recipe, changes)


def as_flags(base: Recipe, changed: Recipe) -> str:
    """The flags that turn one recipe into the other on a job's command line."""
    before, parts = flat(base), []
    for name, value in flat(changed).items():
        if value != before[name]:
            values = value if isinstance(value, tuple) else (value,)
            parts.append(f"--{name.replace('_', '-')} {' '.join(shlex.quote(str(one)) for one in values)}")
    return " ".join(parts)
