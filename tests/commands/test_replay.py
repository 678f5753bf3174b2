"""A run trained again: what is refused, and the same bits from its folder and from MLflow."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from tests.jobs.processes import refusal, run_on
from tests.ray_head import RayHead
from tpn_ray import checkpoint as checkpoints
from tpn_ray import recipes, tracking
from tpn_ray.checkpoint import Checkpoint
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.recipe import replace_fields, to_plain
from tpn_ray.training import origin, run_folder
from tpn_ray.training.machines import Machines
from tpn_ray.training.origin import Origin
from tpn_ray.training.record import Record
from tpn_ray.training.run_plan import check_resumable, recipe_for

ONE_EPOCH = {"loop.batch_clips": 8, "loop.micro_batch_clips": 4, "loop.epochs": 1}


def write_run(folder: Path, data: Path, *origins: Origin) -> str:
    """A run of one epoch, complete, with these origins."""
    manifest = load_manifest(str(data))
    recipe = replace_fields(recipe_for(recipes.toy(), manifest), ONE_EPOCH)
    run = str(folder / "run")
    check_resumable(run, recipe, manifest)
    run_folder.write_record(run, Record(step=4, epoch=1, scores={"val_top1": 0.5}))
    saved = Checkpoint(
        step=4,
        weights={"fc.weight": torch.ones(2, 3)},
        training={},
        recipe=to_plain(recipe),
        dataset_version=manifest.version,
        label_sets={},
    )
    checkpoints.save(run_folder.checkpoint_uri(run, 4), saved)
    for one in origins:
        origin.write(run, one)
    return run


def test_all_that_is_missing_is_said_at_once(toy_folder: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path, toy_folder)
    said = refusal("replay", run)
    assert "does not say which code, packages, and machines trained it" in said
    assert "give --workers" in said
    assert "give --data" in said


def test_other_code_packages_and_workers_are_refused_with_the_commit(toy_folder: Path, tmp_path: Path) -> None:
    now = origin.current(Machines(workers=2), str(toy_folder))
    other = dataclasses.replace(
        now, code_sha256="ab" * 32, commit="cd" * 20, packages={**now.packages, "torch": "1.13.0"}
    )
    run = write_run(tmp_path, toy_folder, other)
    said = refusal("replay", run, "--workers", "1")
    assert f"code: abababababab then, {now.code_sha256[:12]} now" in said
    assert f"git worktree add --detach ../replay {'cd' * 20}" in said
    assert "torch: 1.13.0 then" in said
    assert "workers: 2 with 1 CPU threads each then, 1 with 1 CPU threads each now" in said
    assert "--anyway trains all the same" in said


def test_code_changed_between_two_attempts_is_refused(toy_folder: Path, tmp_path: Path) -> None:
    now = origin.current(Machines(workers=1), str(toy_folder))
    said = refusal("replay", write_run(tmp_path, toy_folder, now, dataclasses.replace(now, code_sha256="ab" * 32)))
    first, second = sorted(["ab" * 6, now.code_sha256[:12]])
    assert f"code: {first} and {second} then" in said


def test_a_changed_dataset_is_refused(toy_folder: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path, toy_folder, origin.current(Machines(workers=1), str(toy_folder)))
    moved = tmp_path / "moved"
    shutil.copytree(toy_folder, moved)
    next(moved.rglob("*.mp4")).unlink()
    said = refusal("replay", run, "--data", str(moved), "--anyway")
    assert f"dataset version {load_manifest(str(toy_folder)).version} trained it" in said
    assert "--anyway" not in said, "no flag makes up for a dataset that is gone"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nothing", "is no run's folder"),
        ("campaign", "give one of its trials"),
        ("0" * 32, "give --tracking-uri, or --storage"),
    ],
)
def test_what_is_no_run_is_refused(place: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "campaign").mkdir()
    (tmp_path / "campaign" / "campaign.json").write_text("{}")
    run = place if len(place) == 32 else str(tmp_path / place)
    assert words in refusal("replay", run, "--storage", str(tmp_path))


def test_equal_attempts_have_one_origin(tmp_path: Path) -> None:
    once = origin.current(Machines(workers=2), "/videos")
    for one in (once, once, dataclasses.replace(once, data="/moved")):
        origin.write(str(tmp_path), one)
    assert sorted(one.data for one in origin.read(str(tmp_path))) == ["/moved", "/videos"]
    assert origin.differences(origin.read(str(tmp_path)), once, any_workers=False) == []


def test_the_number_of_workers_may_change_with_ordered_gradients() -> None:
    two, three = (origin.current(Machines(workers=count)) for count in (2, 3))
    assert origin.differences([two], three, any_workers=False) == [
        "workers: 2 with 1 CPU threads each then, 3 with 1 CPU threads each now"
    ]
    assert origin.differences([two], three, any_workers=True) == []


def test_the_digest_of_weights_sees_every_bit(tmp_path: Path) -> None:
    def digest(**weights: torch.Tensor) -> str:
        saved = Checkpoint(step=1, weights=weights, training={}, recipe={}, dataset_version="", label_sets={})
        checkpoints.save(tmp_path, saved)
        return checkpoints.weights_sha256(str(tmp_path))

    zero, count = torch.zeros(2, 3), torch.tensor(4)
    assert digest(a=zero, b=count) == digest(b=count, a=zero)
    others = [digest(a=-zero, b=count), digest(a=zero.T, b=count), digest(a=zero.half(), b=count), digest(c=zero)]
    assert len({digest(a=zero, b=count), *others}) == 5


@pytest.mark.long
@pytest.mark.cluster
def test_a_run_trains_again_to_the_same_bits(cluster: RayHead, toy_folder: Path, tmp_path: Path) -> None:
    recipe = ["--loop.batch-clips", "8", "--loop.micro-batch-clips", "4", "--loop.epochs", "1"]
    where = ["--storage", str(tmp_path), "--name", "first", "--workers", "2"]
    status, output = run_on(cluster, "train", "toy", "--data", toy_folder, *where, *recipe)
    assert status == 0, output
    client = tracking.store.client_of(tracking.local_uri(str(tmp_path)))
    (run,) = client.search_runs([client.get_experiment_by_name("tpn_ray").experiment_id])
    status, output = run_on(cluster, "replay", run.info.run_id, "--storage", str(tmp_path))
    assert status == 0, output
    assert "the same weights, bit for bit" in output
    # Two micro-batches have the same sum in any order, so one worker has these bits too.
    other = ["--name", "other", "--workers", "1", "--anyway"]
    status, output = run_on(cluster, "replay", tmp_path / "first", "--storage", str(tmp_path), *other)
    assert status == 0, output
    assert "training started with 1 worker" in output
