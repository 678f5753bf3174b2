from __future__ import annotations

import dataclasses
import io
import pickle
from pathlib import Path

import pytest
import torch

from tpn_ray import checkpoint as checkpoints
from tpn_ray import recipes
from tpn_ray.checkpoint import Checkpoint
from tpn_ray.errors import CheckpointError
from tpn_ray.recipe import to_plain


def example() -> Checkpoint:
    return Checkpoint(
        step=7,
        weights={"layer.weight": torch.arange(6.0).reshape(2, 3)},
        training={"optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}},
        recipe=to_plain(recipes.toy()),
        label_sets={"action": ["jump", "run"]},
        dataset_version="abc",
        scores={"val_top1": 0.5},
    )


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "c", example())
    loaded = checkpoints.load(str(tmp_path / "c"))
    assert torch.equal(loaded.weights["layer.weight"], example().weights["layer.weight"])
    assert loaded.training["optimizer"]["param_groups"] == [{"lr": 0.1}]
    assert (loaded.step, loaded.recipe, loaded.label_sets) == (7, example().recipe, example().label_sets)
    assert checkpoints.verify(str(tmp_path / "c")) == 7


@pytest.mark.parametrize("file", checkpoints.FILES)
def test_a_torn_or_changed_file_is_named(tmp_path: Path, file: str) -> None:
    checkpoints.save(tmp_path, example())
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=f"{file} does not match the SHA-256"):
        checkpoints.load(str(tmp_path))


def test_a_folder_without_manifest_is_not_whole(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, example())
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        checkpoints.load(str(tmp_path))


def test_the_folder_of_a_run_stands_for_its_best_checkpoint(tmp_path: Path) -> None:
    for step, scores in ((10, {"val_top1": 0.7}), (20, {"val_top1": 0.7}), (30, {"val_top1": 0.2}), (40, {})):
        place = tmp_path / f"step-{step:08d}"
        checkpoints.save(place, dataclasses.replace(example(), step=step, scores=scores))
        assert checkpoints.find(str(place)) == str(place)
    (tmp_path / "step-00000099").mkdir()  # torn: without a manifest
    assert checkpoints.find(str(tmp_path)) == str(tmp_path)  # not a run yet, and refused where it is read
    (tmp_path / checkpoints.RUN).touch()
    assert checkpoints.find(f"{tmp_path}/") == str(tmp_path / "step-00000020")


def test_a_run_without_checkpoints_is_named(tmp_path: Path) -> None:
    (tmp_path / checkpoints.RUN).touch()
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        checkpoints.find(str(tmp_path))


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "owned",)  # type: ignore[return-value]

    harmful = io.BytesIO()
    torch.save({"weights": Attack()}, harmful, pickle_module=pickle)
    with pytest.raises(CheckpointError, match="something other than tensors"):
        checkpoints.unpacked("c", harmful.getvalue())
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["/../../../escape", "a/b", "..", "a\x1b[2J"])
def test_names_of_a_strangers_checkpoint_leave_no_folder(tmp_path: Path, name: str) -> None:
    checkpoints.save(tmp_path, dataclasses.replace(example(), label_sets={name: ["jump", "run"]}))
    with pytest.raises(
        CheckpointError, match=r"checkpoint\.json has a label set called .*, which may hold only letters"
    ):
        checkpoints.load(str(tmp_path), parts=())
