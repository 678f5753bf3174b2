from __future__ import annotations

import shlex

import pytest
import tyro

from tpn_ray import recipes
from tpn_ray.errors import ConfigError
from tpn_ray.train.recipe import Recipe
from tpn_ray.tune.space import SPACES, apply, as_flags, fitting_alphas, space


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_every_sample_of_every_space_is_a_recipe(name: str, recipe: str) -> None:
    base = recipes.recipe(recipe)
    for _ in range(20):
        sample = {field: domain.sample() for field, domain in space(name, base).items()}
        changed = apply(base, sample)
        flags = as_flags(base, changed)
        assert tyro.cli(Recipe, default=base, args=shlex.split(flags)) == changed


def test_alphas_fit_the_clip_and_never_fall() -> None:
    assert fitting_alphas(2, 4) == [(1, 1), (1, 2), (1, 4), (2, 2), (2, 4), (4, 4)]
    assert len(fitting_alphas(3, 8)) == 20


def test_one_entry_of_a_tuple() -> None:
    base = recipes.toy()
    assert apply(base, {"loss.lambdas.0": 0.25}).loss.lambdas == (0.25,)
    with pytest.raises(ConfigError, match=r"loss.lambdas.1: .* has only 1 entries"):
        apply(base, {"loss.lambdas.1": 0.25})


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match=r"unknown space 'x'; known: lambda_alpha"):
        space("x", recipes.toy())
    with pytest.raises(ConfigError, match=r"no field 'optim.rate'"):
        apply(recipes.toy(), {"optim.rate": 0.1})
