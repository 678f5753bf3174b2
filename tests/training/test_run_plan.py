from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.training.small_runs import write_run
from tpn_ray import checkpoint as checkpoints
from tpn_ray import recipes
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import CheckpointError, ConfigError
from tpn_ray.recipe import replace_fields, to_plain
from tpn_ray.training.run_plan import check_resumable, checkpoint_to_extend, recipe_for


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


def test_a_run_is_extended_from_its_last_checkpoint(tmp_path: Path, manifest: Manifest) -> None:
    """With more epochs and another optimization, but the same plan, network, and dataset."""
    old, new = write_run(tmp_path, manifest), str(tmp_path / "new")
    longer = replace_fields(recipes.toy(), {"loop.epochs": 20, "optim.lr": 0.02})
    recipe = replace_fields(recipes.toy(), {"loop.epochs": 8})
    classes = {name: list(names) for name, names in manifest.label_sets.items()}
    saved = dataclasses.replace(checkpoints.load(f"{old}/step-00000008"), label_sets=classes)
    checkpoints.save(f"{old}/step-00000008", saved)
    assert checkpoint_to_extend(old, longer, manifest) == f"{old}/step-00000008"
    with pytest.raises(CheckpointError, match=r"not with other settings:\n  loop.seed: 0 then, 1 now$"):
        checkpoint_to_extend(old, replace_fields(longer, {"loop.seed": 1}), manifest)
    with pytest.raises(ConfigError, match=r"has trained 8 epochs, and --loop.epochs 8 asks for no more"):
        checkpoint_to_extend(old, recipe, manifest)
    with pytest.raises(CheckpointError, match="has no checkpoint: give --extend the name or the folder of a run"):
        checkpoint_to_extend(new, longer, manifest)
    extended = str(tmp_path / "extended")
    assert check_resumable(extended, longer, manifest, extends=old) == 0
    saved = dataclasses.replace(saved, recipe=to_plain(longer))
    checkpoints.save(f"{extended}/step-00000012", saved)
    assert check_resumable(extended, longer, manifest, extends=old) == 12
    with pytest.raises(CheckpointError, match="extends: '.*/run' then, None now"):
        check_resumable(extended, longer, manifest)
    with pytest.raises(CheckpointError, match=f"loop.epochs: 10 then, 20 now\n.*and give it --extend {old} to go on"):
        check_resumable(old, replace_fields(recipes.toy(), {"loop.epochs": 20}), manifest)


def test_a_name_is_free_for_another_recipe_until_a_step_is_committed(tmp_path: Path, manifest: Manifest) -> None:
    run = str(tmp_path / "run")
    for lr in (0.1, 0.2):
        assert check_resumable(run, replace_fields(recipes.toy(), {"optim.lr": lr}), manifest) == 0
