"""SEARCHERS: from the scores so far to what to try next. Pure; runs on the driver.

A suggestion is a function of the seed, its number, and the scores it may know, never of the order in which trials
happened to end. A restarted campaign therefore makes the same suggestions, and no searcher has state to save.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Literal

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from tpn_ray.errors import ConfigError
from tpn_ray.names import no_such
from tpn_ray.tuning import distributions
from tpn_ray.tuning.distributions import from_json
from tpn_ray.tuning.space import Sample, Space, draws

Direction = Literal["minimize", "maximize"]
TRIES = 1000
"""Maximum number of samples drawn to get a valid one."""
GRID_POINTS = 3
"""Number of values of a range in a grid."""
FIRST_BY_CHANCE = 8
"""Number of scores that a model needs before it is asked."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One score that a suggestion may know."""

    sample: Sample
    epoch: int
    scores: tuple[float, ...]
    """One value per objective; higher is better."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A request to a searcher for `count` samples, for the trials from number `first`."""

    space: Space
    is_valid: Callable[[Sample], bool]
    seen: Sequence[Seen]
    first: int
    count: int
    seed: int


def random(question: Question) -> list[Sample]:
    """Draw independent samples."""
    return [_draw(question, number) for number in range(question.first, question.first + question.count)]


def grid(question: Question) -> list[Sample]:
    """Return combinations of all choices and GRID_POINTS values of each range, with the last field varying fastest."""
    values = [distributions.grid(one, GRID_POINTS) for one in question.space.values()]
    samples = (dict(zip(question.space, combination, strict=True)) for combination in product(*values))
    valid = filter(question.is_valid, samples)
    return list(islice(valid, question.first, question.first + question.count))


def tpe(question: Question) -> list[Sample]:
    """Suggest with Optuna's multivariate TPE, on the scores of the furthest epoch that enough trials have reached.

    That choice of epoch is BOHB's (Falkner et al., 2018): with rungs, early scores guide until late ones can.
    """
    seen = _furthest(question.seen)
    if not seen:
        return random(question)
    seed = int(np.random.SeedSequence([question.seed, question.first]).generate_state(1)[0])
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=0)
    known = [as_trial(question.space, one.sample, one.scores) for one in seen]
    study = as_study(known, ["maximize"] * len(seen[0].scores), sampler)
    found: list[Sample] = []
    for _ in range(TRIES):
        trial = study.ask({**question.space})
        sample = {name: trial.params[name] for name in question.space}
        if question.is_valid(sample):
            found.append(sample)
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        if len(found) == question.count:
            return found
    raise _too_rare(TRIES)


SEARCHERS: dict[str, Callable[[Question], list[Sample]]] = {"random": random, "grid": grid, "tpe": tpe}
MODELS = ("tpe",)
"""Searchers that look at scores."""


def suggest(name: str, question: Question) -> list[Sample]:
    """Return the samples of the named searcher; fewer only where a grid ends."""
    if name not in SEARCHERS:
        raise ConfigError(no_such("searcher", name, SEARCHERS))
    return SEARCHERS[name](question)


def _draw(question: Question, number: int) -> Sample:
    for sample in islice(draws(question.space, seed=question.seed, number=number), TRIES):
        if question.is_valid(sample):
            return sample
    raise _too_rare(TRIES)


def _too_rare(tries: int) -> ConfigError:
    return ConfigError(f"{tries} samples of the space in a row make no valid recipe; vary fewer fields together")


def _furthest(seen: Sequence[Seen]) -> list[Seen]:
    for epoch in sorted({one.epoch for one in seen}, reverse=True):
        reached = [one for one in seen if one.epoch == epoch]
        if len(reached) >= FIRST_BY_CHANCE:
            return reached
    return []


def as_study(
    trials: Iterable[FrozenTrial],
    directions: Sequence[Direction] = ("maximize",),
    sampler: optuna.samplers.BaseSampler | None = None,
) -> optuna.Study:
    """Make an in-memory Optuna study."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=directions, sampler=sampler)
    study.add_trials(trials)
    return study


def as_trial(space: Space, sample: Sample, values: Sequence[float]) -> FrozenTrial:
    """Make a complete Optuna trial of the fields that the sample has. Stored samples hold lists for tuples."""
    known = {name: one for name, one in space.items() if name in sample}
    params = {name: from_json(sample[name]) for name in known}
    return optuna.trial.create_trial(params=params, distributions={**known}, values=values)
