"""jobs/tempo.py as a user runs it, on videos whose true tempo is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient

from tests.checkpoints import save_untrained
from tests.jobs.processes import refusal, run_on
from tests.ray_head import RayHead
from tpn_ray import checkpoint as checkpoints
from tpn_ray import recipes
from tpn_ray.checkpoint import Checkpoint
from tpn_ray.data.plan import Plan
from tpn_ray.data.tasks import ClipSource, training_rows
from tpn_ray.datasets.manifest import Manifest, load_manifest
from tpn_ray.datasets.toy import ToyConfig
from tpn_ray.datasets.toy_actions import ACTION_CLASSES, read_tempos, write_actions
from tpn_ray.metrics import spearman
from tpn_ray.recipe import Recipe, replace_fields, to_plain
from tpn_ray.training.step import MicroBatch, Training

pytestmark = pytest.mark.cluster

STEPS, DECODED_STEPS = 80, 20


@pytest.fixture(scope="module")
def actions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 videos to train on and 64 to measure."""
    folder = tmp_path_factory.mktemp("actions")
    write_actions(str(folder), ToyConfig(train_per_class=20, val_per_class=8))
    return folder


@pytest.fixture(scope="module")
def frames_checkpoint(actions: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The recipe toy_frames after a few steps, by the plain training loop."""
    torch.set_num_threads(1)
    manifest = load_manifest(str(actions))
    recipe = replace_fields(recipes.recipe("toy_frames"), {"loop.batch_clips": 32, "loop.micro_batch_clips": 32})
    weights = _train(recipe, manifest.select("train"))
    folder = tmp_path_factory.mktemp("frames")
    saved = Checkpoint(
        step=STEPS,
        weights=weights,
        training={},
        recipe=to_plain(recipe),
        label_sets={name: list(classes) for name, classes in manifest.label_sets.items()},
        dataset_version=manifest.version,
    )
    checkpoints.save(folder, saved)
    return str(folder)


def _train(recipe: Recipe, manifest: Manifest) -> dict[str, torch.Tensor]:
    training = Training(recipe.model, recipe.loss, recipe.optim, recipe.loop, "cpu")
    source = ClipSource(manifest=manifest, clip=recipe.clip, augment=recipe.augment, seed=0)
    plan = Plan(samples=len(manifest), seed=0, epochs=100, batch_clips=32, micro_batch_clips=32)
    batches = [training_rows(source, [plan.slot(step, 1)]) for step in range(DECODED_STEPS)]
    for step in range(STEPS):
        made = batches[step % DECODED_STEPS]
        clips, labels = torch.from_numpy(made["clip"]), torch.from_numpy(made["labels"])
        training.train_step([MicroBatch(0, clips, labels)], STEPS)
    return training.model.state_dict()


@pytest.mark.long
def test_the_whole_analysis(cluster: RayHead, actions: Path, frames_checkpoint: str, tmp_path: Path) -> None:
    other = save_untrained(tmp_path / "other", ACTION_CLASSES)
    out, store = tmp_path / "out", f"sqlite:///{tmp_path}/mlflow.db"
    flags = ["--data", str(actions), "--frames", frames_checkpoint, "--first", other, "--second", other]
    flags += ["--strides", "2", "--workers", "2", "--tracking-uri", store, "--out", str(out)]
    status, output = run_on(cluster, "tempo", *flags)
    assert status == 0, output
    tempos = pq.read_table(out / "tempo.parquet").to_pylist()
    assert [one["id"] for one in tempos] == load_manifest(str(actions)).select("val").ids
    true = read_tempos(str(actions))
    measured = np.array([one["seconds"] for one in tempos])
    assert np.isfinite(measured).all()
    correlation = spearman(np.array([true[one["id"]] for one in tempos]), measured)
    assert correlation >= 0.9
    numbers = json.loads((out / "report.json").read_text())
    assert numbers["spearman_with_truth"] == f"{correlation:.3f} over 64 videos whose true tempo is known"
    assert set(numbers["gains"].values()) == {0.0}  # against itself nothing is gained
    assert numbers["strides"]["stride"] == [2, 4]
    client = MlflowClient(store)
    (tracked,) = client.search_runs([client.get_experiment_by_name("tpn_ray").experiment_id])
    files = {file.path for file in client.list_artifacts(tracked.info.run_id)}
    assert files == {"report.html", "variance.png", "truth.png", "gain.png", "strides.png", "missed.png"}


def test_what_a_user_gets_wrong(tmp_path: Path) -> None:
    write_actions(str(tmp_path / "few"), ToyConfig(train_per_class=1, val_per_class=1))
    pyramid = save_untrained(tmp_path / "pyramid", ACTION_CLASSES)
    arguments = ["--data", str(tmp_path / "few"), "--frames", pyramid, "--out", str(tmp_path / "out")]
    assert "single frames are for a tsn backbone" in refusal("tempo", *arguments)
    assert "give --first and --second, or neither" in refusal("tempo", *arguments, "--first", pyramid)
