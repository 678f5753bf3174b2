"""Checkpoints as models of MLflow, with their scores, their data, and the versions of the registry."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModel

from tests.checkpoints import save_untrained
from tpn_ray import tracking
from tpn_ray.tracking import TrackedRun, UsedData, models

TRAINING = UsedData(name="toy/train", digest="v1", source="s3://b/toy", context="training", videos=32)
VALIDATION = UsedData(name="toy/val", digest="v1", source="s3://b/toy", context="validation", videos=16)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tracking.local_uri(str(tmp_path_factory.mktemp("store")))


def begin(store: str, name: str) -> TrackedRun:
    tags = {"storage": f"s3://b/runs/{name}"}
    run = tracking.begin(store, "models", name, parameters={}, tags=tags)
    run.keeps_models = True
    run.use(TRAINING)
    run.use(VALIDATION)
    return run


def models_of(run: TrackedRun) -> dict[str, LoggedModel]:
    """The run's logged models, by the last part of their checkpoints."""
    experiment = run.client.get_run(run.run_id).info.experiment_id
    found = run.client.search_logged_models([experiment], f"source_run_id = '{run.run_id}'")
    return {model.tags["checkpoint"].rpartition("/")[2]: model for model in found}


def test_the_data_of_a_run_are_listed(store: str) -> None:
    run = begin(store, "data")
    found = {one.tags[0].value: one.dataset for one in run.client.get_run(run.run_id).inputs.dataset_inputs}
    assert {context: (data.name, data.digest) for context, data in found.items()} == {
        "training": ("toy/train", "v1"),
        "validation": ("toy/val", "v1"),
    }
    assert json.loads(found["validation"].source) == {"uri": "s3://b/toy"}
    assert json.loads(found["validation"].profile) == {"videos": 16}


def test_each_scored_checkpoint_is_a_model_with_its_scores_and_its_data(store: str) -> None:
    run = begin(store, "a run, 1")
    for step, top1 in ((10, 0.5), (20, 0.25)):
        run.log_checkpoint(f"s3://b/runs/x/step-{step:08d}", step, {"val/top1": top1})
    run.log_checkpoint("s3://b/runs/x/step-00000030", 30, {})
    assert run.sent, run.last_reason
    found = models_of(run)
    assert sorted(found) == ["step-00000010", "step-00000020"]
    model = found["step-00000010"]
    assert model.name == "a run, 1 step-00000010"
    assert model.status == "READY"
    assert [(one.key, one.value, one.step) for one in model.metrics] == [("val/top1", 0.5, 10)]
    assert {(one.dataset_name, one.dataset_digest) for one in model.metrics} == {("toy/val", "v1")}
    stored = run.client.get_run(run.run_id)
    assert sorted(output.step for output in stored.outputs.model_outputs) == [10, 20]
    history = run.client.get_metric_history(run.run_id, "val/top1")
    assert [(one.step, one.value) for one in history] == [(10, 0.5), (20, 0.25)], "each once"


def test_a_checkpoint_sent_twice_is_one_model(store: str) -> None:
    """As after a server that made it and whose answer was lost."""
    run = begin(store, "twice")
    kept = models.KeptCheckpoint(uri="c", step=1, scores={"val/top1": 0.5}, at=1, data=VALIDATION)
    for _ in range(2):
        models.log_checkpoint(run.client, run.run_id, kept)
    assert list(models_of(run)) == ["c"]
    assert len(run.client.get_run(run.run_id).outputs.model_outputs) == 1


def test_models_of_checkpoints_that_are_gone_go_too(store: str) -> None:
    run = begin(store, "pruned")
    for step in (1, 2, 3):
        run.log_checkpoint(f"c/step-{step}", step, {"val/top1": 0.5})
    run.forget_checkpoints(["c/step-2"])
    assert list(models_of(run)) == ["step-2"]


def test_an_evaluation_finds_its_training_run_and_its_model(store: str) -> None:
    run = begin(store, "trained")
    run.log_checkpoint("s3://b/runs/trained/step-00000010", 10, {"val/top1": 0.5})
    trained, model = tracking.find_run(store, "models", "s3://b/runs/trained/step-00000010")
    assert (trained, model) == (run.run_id, models_of(run)["step-00000010"].model_id)
    assert model is not None
    assert tracking.find_run(store, "models", "s3://b/runs/other/step-00000010") == (None, None)
    scored = tracking.begin(store, "models", "evaluate", parameters={}, tags={}, parent=trained)
    scored.use(UsedData(name="toy/test", digest="v2", source="x", context="evaluation", videos=4))
    scored.evaluates(model)
    scored.log_metrics({"test/top1": 0.75}, 0)
    assert scored.end("FINISHED"), scored.last_reason
    metrics = {one.key: (one.value, one.dataset_name) for one in models_of(run)["step-00000010"].metrics}
    assert metrics == {"val/top1": (0.5, "toy/val"), "test/top1": (0.75, "toy/test")}
    stored = run.client.get_run(scored.run_id)
    assert [one.model_id for one in stored.inputs.model_inputs] == [model]


def test_the_champion_is_the_best_version_on_its_dataset(store: str, tmp_path: Path) -> None:
    run, checkpoint = begin(store, "registered"), save_untrained(tmp_path / "checkpoint")
    champions = []
    for top1, data in (("0.5", "v1"), ("0.4", "v1"), ("0.6", "v1"), ("0.9", "v2")):
        version = run.register_model("toy", checkpoint, {"val_top1": top1, "dataset_version": data})
        champions.append((version, run.champion))
    assert champions == [("1", "1"), ("2", "1"), ("3", "3"), ("4", "3")], run.last_reason
    assert str(MlflowClient(store).get_model_version_by_alias("toy", "champion").version) == "3"
    assert [list(models_of(run)), len(mlflow.MlflowClient(store).search_model_versions("name = 'toy'"))] == [
        ["checkpoint"],
        4,
    ]
