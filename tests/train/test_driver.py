from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tpn_ray import checkpoint as checkpoints
from tpn_ray import recipes
from tpn_ray.checkpoint import Checkpoint
from tpn_ray.clips.manifest import Manifest, load_manifest
from tpn_ray.errors import BudgetError, CheckpointError, ConfigError, ResourceError, StorageError, TrainingError
from tpn_ray.train import driver
from tpn_ray.train.driver import Machines
from tpn_ray.train.events import BadVideos, Event
from tpn_ray.train.recipe import replace_fields, to_plain


@pytest.fixture(scope="module")
def manifest(toy_folder: Path) -> Manifest:
    return load_manifest(str(toy_folder))


@pytest.mark.parametrize(
    ("machines", "total", "message"),
    [
        (Machines(workers=3), {"CPU": 100.0}, "3 workers cannot share the 2 micro-batches"),
        (Machines(workers=2), {"CPU": 2.0}, "too few CPUs: .* need 3, the cluster has 2; .*--workers"),
        (
            Machines(workers=2, gpus_per_worker=1),
            {"CPU": 9.0, "GPU": 1.0},
            "too few GPUs: .* need 2, the cluster has 1",
        ),
    ],
)
def test_what_can_never_start_is_refused(machines: Machines, total: dict[str, float], message: str) -> None:
    with pytest.raises(ResourceError, match=message):
        driver.check_feasible(machines, recipes.toy(), total)


def test_what_fits_is_not_refused() -> None:
    driver.check_feasible(Machines(workers=2), recipes.toy(), {"CPU": 3.0})
    driver.check_feasible(Machines(workers=2, may_grow=True), recipes.toy(), {"CPU": 1.0})


def test_nonsense_machines() -> None:
    with pytest.raises(ConfigError, match="workers=0"):
        Machines(workers=0)
    with pytest.raises(ConfigError, match="decode_cpus"):
        Machines(decode_cpus=0)


def test_the_network_gets_the_classes_of_the_dataset(manifest: Manifest) -> None:
    recipe = driver.recipe_for(replace_fields(recipes.toy(), {"model.classes": 3}), manifest)
    assert recipe.model.classes == 8
    two = dataclasses.replace(manifest, label_sets={"verb": ("a", "b"), "noun": ("c", "d", "e")})
    assert driver.recipe_for(recipes.toy(), two).model.classes == (2, 3)


def write_run(folder: Path, manifest: Manifest, lr: float = 0.1) -> str:
    """A run folder as Ray Train leaves it, with checkpoints at steps 4 and 8."""
    recipe = replace_fields(recipes.toy(), {"optim.lr": lr})
    results = []
    for step, top1 in ((4, 0.75), (8, 0.5)):
        saved = Checkpoint(
            step=step, weights={}, training={}, recipe=to_plain(recipe), dataset_version=manifest.version, label_sets={}
        )
        checkpoints.save(folder / f"step-{step:08d}", saved)
        metrics = {"step": step, "val_top1": top1, "history": []}
        results.append({"checkpoint_dir_name": f"step-{step:08d}", "metrics": metrics})
    snapshot = {"checkpoint_results": results, "latest_checkpoint_result": results[-1]}
    (folder / "checkpoint_manager_snapshot.json").write_text(json.dumps(snapshot))
    return str(folder)


def test_a_run_goes_on_from_its_last_checkpoint_and_its_best_is_found(tmp_path: Path, manifest: Manifest) -> None:
    run = write_run(tmp_path, manifest)
    assert driver.check_resumable(run, recipes.toy(), manifest) == 8
    assert driver.last_checkpoint(run) == f"{run}/step-00000008"
    assert driver.best_checkpoint(run) == (f"{run}/step-00000004", {"val_top1": 0.75})
    assert driver.check_resumable(str(tmp_path / "new"), recipes.toy(), manifest) == 0


def test_another_recipe_or_dataset_under_the_same_name_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    run = write_run(tmp_path, manifest, lr=0.3)
    with pytest.raises(CheckpointError, match=r"optim.lr: 0.3 then, 0.1 now\n.*another --name"):
        driver.check_resumable(run, recipes.toy(), manifest)
    other = dataclasses.replace(manifest, version="other")
    with pytest.raises(CheckpointError, match=f"dataset version: {manifest.version} then, other now"):
        driver.check_resumable(run, replace_fields(recipes.toy(), {"optim.lr": 0.3}), other)


def test_bad_videos_are_booked_once_and_held_to_the_budget(manifest: Manifest) -> None:
    seen: list[Event] = []
    ledger = driver._Ledger(manifest, 0.05, seen.append)  # 48 videos: two may be bad
    ledger(BadVideos(split="train", found=((0, "empty", "a"),)))
    ledger(BadVideos(split="train", found=((0, "empty", "a"), (1, "empty", "b"))))
    assert len(ledger.bad) == 2
    with pytest.raises(BudgetError, match=r"3 of 48 videos are bad, the budget allows 2(.|\n)*--max-bad"):
        ledger(BadVideos(split="val", found=((0, "damaged", "c"),)))
    assert len(seen) == 3


def test_the_projects_own_error_is_found_inside_what_ray_raises() -> None:
    class WorkerGroupError(Exception):
        worker_failures = {1: RuntimeError("outer")}  # noqa: RUF012

    WorkerGroupError.worker_failures[1].__cause__ = StorageError("cannot read s3://b/k")
    assert isinstance(driver.explain(WorkerGroupError()), StorageError)
    explained = driver.explain(ValueError("first\nlast line"))
    assert isinstance(explained, TrainingError)
    assert "last line" in str(explained)
