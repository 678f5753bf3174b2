from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.training.small_runs import write_run
from tpn_ray import recipes
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import CheckpointError
from tpn_ray.recipe import replace_fields
from tpn_ray.training.run_plan import check_resumable, recipe_for


def test_the_network_gets_the_classes_of_the_dataset(manifest: Manifest) -> None:
    recipe = recipe_for(replace_fields(recipes.toy(), {"model.classes": 3}), manifest)
    assert recipe.model.classes == 8
    two = dataclasses.replace(manifest, label_sets={"verb": ("a", "b"), "noun": ("c", "d", "e")})
    assert recipe_for(recipes.toy(), two).model.classes == (2, 3)


def test_a_run_goes_on_from_its_last_checkpoint(tmp_path: Path, manifest: Manifest) -> None:
    run = write_run(tmp_path, manifest)
    assert check_resumable(run, recipes.toy(), manifest) == 8
    assert check_resumable(str(tmp_path / "new"), recipes.toy(), manifest) == 0


def test_another_recipe_or_dataset_under_the_same_name_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    run = write_run(tmp_path, manifest, lr=0.3)
    with pytest.raises(CheckpointError, match=r"\n  optim.lr: 0.3 then, 0.1 now\n.*another --name"):
        check_resumable(run, recipes.toy(), manifest)
    other = dataclasses.replace(manifest, version="other")
    with pytest.raises(CheckpointError, match=f"dataset_version: '{manifest.version}' then, 'other' now"):
        check_resumable(run, replace_fields(recipes.toy(), {"optim.lr": 0.3}), other)


def test_a_name_is_free_for_another_recipe_until_a_step_is_committed(tmp_path: Path, manifest: Manifest) -> None:
    run = str(tmp_path / "run")
    for lr in (0.1, 0.2):
        assert check_resumable(run, replace_fields(recipes.toy(), {"optim.lr": lr}), manifest) == 0
