"""One run against real stores: SQLite, and a server that goes away and comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.faulty_proxy import FaultyProxy
from tpn_ray import tracking
from tpn_ray.tracking import UsedData, tracked_run

DATA = UsedData(name="toy/val", digest="v1", source="s3://b/toy", context="validation", videos=16)


def begin(uri: str, name: str = "run", **more: str | None) -> tracking.TrackedRun:
    return tracking.begin(uri, "experiment", name, parameters={"optim.lr": 0.1}, tags={"a": "b"}, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tracking.local_uri(str(tmp_path_factory.mktemp("store")))


def test_a_run_holds_parameters_metrics_tags_and_artefacts(store: str) -> None:
    run = begin(store)
    run.log_metrics({"loss": 2.0}, 1)
    run.log_metrics({"loss": 1.0}, 2)
    run.set_tags({"last_checkpoint": "here"})
    run.log_json({"x": 1}, "recipe.json")
    assert run.end("FINISHED")
    client = MlflowClient(store)
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.params == {"optim.lr": "0.1"}
    assert [(m.step, m.value) for m in client.get_metric_history(run.run_id, "loss")] == [(1, 2.0), (2, 1.0)]
    assert stored.data.tags["last_checkpoint"] == "here"
    assert [file.path for file in client.list_artifacts(run.run_id)] == ["recipe.json"]
    assert stored.info.artifact_uri.startswith(f"{Path(store.removeprefix(tracking.SQLITE)).parent}/mlflow-artifacts/")


def test_an_unfinished_run_goes_on_and_a_finished_one_does_not(store: str) -> None:
    first = begin(store, "again")
    assert begin(store, "again").run_id == first.run_id
    first.end("FINISHED")
    assert begin(store, "again").run_id != first.run_id


def test_a_child_is_not_taken_for_its_parent(store: str) -> None:
    parent = begin(store, "family")
    child = begin(store, "family", parent=parent.run_id)
    assert child.run_id != parent.run_id
    tags = MlflowClient(store).get_run(child.run_id).data.tags
    assert tags[tracking.PARENT_TAG] == parent.run_id


def test_nothing_that_is_tracked_holds_a_secret(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_PASSWORD", "planted-1")
    said = "warning: http://alice:s3cretpw9@host said planted-1"
    clean = "warning: http://***@host said ***"
    run = tracking.begin(store, "experiment", "secrets", parameters={"p": said}, tags={"begun": said})
    run.set_tags({"warning": said})
    run.log_text(said, "note.txt")
    run.log_json({"said": said}, "note.json")
    assert run.end("FINISHED")
    client = MlflowClient(store)
    stored = client.get_run(run.run_id).data
    assert (stored.params["p"], stored.tags["begun"], stored.tags["warning"]) == (clean, clean, clean)
    for name in ("note.txt", "note.json"):
        text = Path(client.download_artifacts(run.run_id, name)).read_text()
        assert clean in text
        assert "planted-1" not in text


@pytest.mark.cluster
def test_what_a_server_missed_is_sent_when_it_is_back(mlflow_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracked_run, "RETRY_SECONDS", 0.0)
    with FaultyProxy(("127.0.0.1", int(mlflow_url.rpartition(":")[2])), "", lambda _: False) as door:
        run = begin(door.url, "missed")
        door.go_away("refused")
        run.log_metrics({"loss": 3.0}, 1)
        run.log_text("x", "note.txt")
        run.use(DATA)
        run.keeps_models = True
        run.log_checkpoint("s3://b/run/step-00000001", 1, {"val/top1": 0.5})
        assert not run.sent
        assert run.failures > 0
        door.come_back()
        run.log_metrics({"loss": 2.0}, 2)
        assert run.end("FINISHED")
        client = MlflowClient(door.url)
        assert [(m.step, m.value) for m in client.get_metric_history(run.run_id, "loss")] == [(1, 3.0), (2, 2.0)]
        assert [file.path for file in client.list_artifacts(run.run_id)] == ["note.txt"]
        stored = client.get_run(run.run_id)
        assert [one.dataset.digest for one in stored.inputs.dataset_inputs] == ["v1"]
        models = client.search_logged_models([stored.info.experiment_id])
        (model,) = [model for model in models if model.source_run_id == run.run_id]
        assert [(one.key, one.value, one.dataset_name) for one in model.metrics] == [("val/top1", 0.5, "toy/val")]
