"""How population-based training changes a donor's settings for the trial that continues from it. Pure; runs anywhere.

The operations are those of Jaderberg et al. (2017) and Ray Tune. Ray draws from a process-wide generator; here, all
draws are a function of (campaign's seed, trial, step), so that a rerun campaign mutates as before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution, FloatDistribution

from tpn_ray.tuning.distributions import Distribution, at, edges, from_json
from tpn_ray.tuning.space import Sample, Space

DRAWN_ANEW = 0.25
"""Probability that a field is drawn anew instead of moved from the donor's value."""
FACTORS = (0.8, 1.2)
MOST_DRAWS = 1000
"""Draws without a valid recipe after which a mutant is given up."""


def generator(seed: int, trial: int, step: int) -> np.random.Generator:
    """Return the generator of all draws for a trial at a step."""
    return np.random.default_rng(np.random.SeedSequence((seed, trial, step)))


def mutated(donor: Sample, changing: Space, is_valid: Callable[[Sample], bool], random: np.random.Generator) -> Sample:
    """Return the donor's sample with every field of `changing` moved or drawn anew; if none is valid, the donor's own.

    Values are as the journal has them: lists where the space has tuples.
    """
    mutant = donor | {name: _plain(_mutation(one, donor[name], random)) for name, one in changing.items()}
    for _ in range(MOST_DRAWS):
        if is_valid(mutant):
            return mutant
        mutant = donor | {name: _plain(at(one, random.random())) for name, one in changing.items()}
    return dict(donor)


def _mutation(one: Distribution, value: Any, random: np.random.Generator) -> Any:
    if random.random() < DRAWN_ANEW:
        return at(one, random.random())
    up = bool(random.integers(2))
    if isinstance(one, CategoricalDistribution):
        beside = one.choices.index(from_json(value)) + (1 if up else -1)
        return one.choices[min(max(beside, 0), len(one.choices) - 1)]
    moved = value * FACTORS[up]
    if isinstance(one, FloatDistribution):
        return min(max(float(moved), one.low), edges(one)[1])
    return min(max(round(moved), one.low), one.high)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
