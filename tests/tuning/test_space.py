from __future__ import annotations

import shlex
from itertools import islice

import pytest
import tyro

from tpn_ray import command_line, recipes
from tpn_ray.errors import ConfigError
from tpn_ray.recipe import Recipe, replace_fields
from tpn_ray.tuning.space import SPACES, active, apply, check, draws, fitting_alphas, problem, space


@pytest.mark.parametrize("name", [name for name in SPACES if name != "none"])
@pytest.mark.parametrize("recipe", [name for name in recipes.RECIPES if recipes.recipe(name).model.neck == "tpn"])
def test_most_samples_of_every_space_are_recipes_and_flags(name: str, recipe: str) -> None:
    base = recipes.recipe(recipe)
    samples = list(islice(draws(space(name, base), seed=0, number=0), 20))
    valid = [sample for sample in samples if not problem(base, sample)]
    assert len(valid) >= 10
    for sample in valid[:2]:
        changed = apply(base, sample)
        assert tyro.cli(Recipe, default=base, args=shlex.split(command_line.flags(changed, base))) == changed


def test_alphas_fit_the_clip_and_never_fall() -> None:
    assert fitting_alphas(2, 4) == [(1, 1), (1, 2), (1, 4), (2, 2), (2, 4), (4, 4)]
    assert len(fitting_alphas(3, 8)) == 20


def test_one_entry_of_a_tuple() -> None:
    base = recipes.toy()
    assert apply(base, {"loss.lambdas.0": 0.25}).loss.lambdas == (0.25,)
    with pytest.raises(ConfigError, match=r"loss.lambdas.1: .* has only 1 entries"):
        apply(base, {"loss.lambdas.1": 0.25})


def test_alpha_and_lambda_follow_the_levels() -> None:
    base = replace_fields(recipes.toy(), {"model.alpha": (2, 4)})
    three = apply(base, {"model.levels": [3, 4, 5], "loss.lambdas.0": 0.25})
    assert (three.model.alpha, three.loss.lambdas) == ((2, 2, 4), (0.25, 0.25))
    assert apply(three, {"model.levels": (4, 5)}) == replace_fields(base, {"loss.lambdas": (0.25,)})


def test_draws_depend_on_the_seed_and_the_number_alone() -> None:
    fields = space("all", recipes.toy())
    first, again, other = (next(draws(fields, seed=0, number=number)) for number in (5, 5, 6))
    assert first == again != other
    assert next(draws(fields, seed=1, number=5)) != first


def test_any_field_by_name() -> None:
    fields = space(
        "lambda_alpha", recipes.toy(), ["optim.weight-decay=loguniform(1e-5,1e-3)", "model.dropout=choice(0)"]
    )
    assert list(fields) == ["loss.lambdas.0", "model.alpha", "optim.weight_decay", "model.dropout"]
    assert list(space("none", recipes.toy(), ["clip.frames=choice(8,16)"])) == ["clip.frames"]
    assert set(space("lambda_alpha+schedule", recipes.toy())) > {"model.alpha", "optim.lr"}


@pytest.mark.parametrize(
    ("name", "varied", "message"),
    [
        ("x", [], "unknown space 'x'; known: lambda_alpha"),
        ("none", [], "nothing is varied"),
        ("none", ["optim.rate=uniform(0,1)"], "unknown field of a recipe 'optim.rate'"),
        ("none", ["optim.lr"], "must be FIELD=DISTRIBUTION"),
        ("none", ["model.dropout=uniform(0,2)"], r"model.dropout=1.9999.* never makes a recipe: dropout="),
        ("none", ["optim.schedule=choice(cosine,linear)"], "schedule='linear' must be"),
        ("none", ["optim.lr=choice(fast)"], "optim.lr='fast'"),
        ("none", ["clip.frames=choice(8.5)"], "not a recipe|wrong type"),
        ("none", ["model.alpha=choice((16,32))"], "pools more frames than the 16 of a clip"),
        ("none", ["loss.lambdas.1=uniform(0,1)"], "has only 1 entries"),
    ],
)
def test_what_can_never_start_is_refused(name: str, varied: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space(name, recipes.toy(), varied)


def test_a_value_that_only_fits_together_with_another_is_not_refused() -> None:
    varied = ["loop.batch_clips=choice(32,48)", "loop.micro_batch_clips=choice(16,24)"]
    fields = space("none", recipes.toy(), varied)
    check(recipes.toy(), fields)
    assert problem(recipes.toy(), {"loop.batch_clips": 32, "loop.micro_batch_clips": 24})
    assert not problem(recipes.toy(), {"loop.batch_clips": 48, "loop.micro_batch_clips": 24})


def test_milestones_matter_for_steps_only() -> None:
    sample = {"optim.schedule": "step", "optim.gamma": 0.2, "optim.lr": 0.1}
    recipe = recipes.toy()
    assert active(recipe, sample) == sample
    assert active(recipe, {**sample, "optim.schedule": "one_cycle"}) == {"optim.schedule": "one_cycle", "optim.lr": 0.1}
    cosine = replace_fields(recipe, {"optim.schedule": "cosine"})
    assert active(cosine, {"optim.gamma": 0.2, "optim.lr": 0.1}) == {"optim.lr": 0.1}
