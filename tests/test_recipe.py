from __future__ import annotations

import json

import pytest

from tpn_ray import recipes
from tpn_ray.errors import ConfigError, difference
from tpn_ray.recipe import flat, from_plain, replace_fields, to_plain, with_defaults


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_survives_json(name: str) -> None:
    recipe = recipes.recipe(name)
    assert from_plain(json.loads(json.dumps(to_plain(recipe)))) == recipe


def test_fields_are_replaced_by_name_and_checked_again() -> None:
    recipe = replace_fields(recipes.toy(), {"optim.lr": 0.5, "model.alpha": (2, 4)})
    assert (recipe.optim.lr, recipe.model.alpha) == (0.5, (2, 4))
    with pytest.raises(ConfigError, match=r"unknown field of a recipe 'optim.rate' .did you mean optim.lr"):
        replace_fields(recipe, {"optim.rate": 1})
    with pytest.raises(ConfigError, match=r"lambdas=.* 2 entries, the network has 1"):
        replace_fields(recipe, {"loss.lambdas": (0.1, 0.2)})


def test_a_difference_names_the_field_and_both_values() -> None:
    old, new = recipes.toy(), replace_fields(recipes.toy(), {"optim.lr": 0.25})
    assert difference(to_plain(old), to_plain(new)) == [f"optim.lr: {old.optim.lr} then, 0.25 now"]
    assert difference(to_plain(old), to_plain(old)) == []


def test_a_recipe_of_an_older_version_is_what_it_was() -> None:
    now = to_plain(recipes.toy())
    before = {**now, "optim": {name: value for name, value in now["optim"].items() if name != "layer_decay"}}
    assert with_defaults({"recipe": before, "format": 1}) == {"recipe": now, "format": 1}
    assert with_defaults({"recipe": {"optim": {"lr": 0.25}}})["recipe"]["optim"]["lr"] == 0.25


def test_flat_names_are_those_of_the_command_line() -> None:
    assert {"clip.frames", "augment.crop_px", "model.flow", "loss.lambdas", "optim.lr", "loop.epochs"} <= set(
        flat(recipes.toy())
    )


def test_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"unknown recipe 'k600'.*; known: .*toy"):
        recipes.recipe("k600")


def test_plain_data_that_is_no_recipe_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"not a recipe"):
        from_plain({**to_plain(recipes.toy()), "optim": {"lr": "fast"}})


FLOW = {"clip.modality": "flow"}


def test_the_network_has_the_channels_of_the_clip() -> None:
    recipe = recipes.toy()
    assert recipe.model.in_channels == 3
    flow = replace_fields(recipe, FLOW)
    assert flow.model.in_channels == 2
    stacks = replace_fields(flow, {"clip.sampling": "segments"})
    assert stacks.model.in_channels == 10
    assert from_plain(json.loads(json.dumps(to_plain(stacks)))) == stacks
    assert replace_fields(stacks, {"clip.modality": "rgb", "clip.sampling": "dense"}) == recipe


def test_flow_has_no_colors() -> None:
    with pytest.raises(ConfigError, match=r"flow has no colors to change: .* --augment.brightness 0"):
        replace_fields(recipes.k400_r50_8x8(), FLOW)
    with pytest.raises(ConfigError, match=r"not flow: set --augment.rand-operations 0"):
        replace_fields(recipes.toy(), {**FLOW, "augment.rand_operations": 2})


def test_a_recipe_from_before_there_was_flow_is_the_same_recipe() -> None:
    now = {"recipe": to_plain(recipes.toy()), "dataset_version": "v"}
    before = json.loads(json.dumps(now))
    del before["recipe"]["clip"]["modality"], before["recipe"]["model"]["in_channels"]
    assert difference(with_defaults(before), with_defaults(now)) == []
