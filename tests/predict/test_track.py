"""Results as a run of MLflow: what is sent, and what is said of a server that is gone."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from tpn_ray import tracking
from tpn_ray.predict import track


def test_numbers_and_pictures_are_logged(tmp_path: Path) -> None:
    results = tmp_path / "results"
    (results / "views").mkdir(parents=True)
    for name in ("metrics.json", "confusion_action.png", "videos.parquet", "views/00000.png"):
        (results / name).write_bytes(b"{}")
    run = tracking.begin(tracking.local_uri(str(tmp_path)), "e", "n", parameters={}, tags={})
    track.log_folder(run, str(results), "alpha_1/")
    logged = MlflowClient(run.tracking_uri).list_artifacts(run.run_id, "alpha_1")
    assert sorted(file.path for file in logged) == ["alpha_1/confusion_action.png", "alpha_1/metrics.json"]


def test_a_server_that_is_gone_is_named_without_its_password(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = "http://alice:s3cretpw9@127.0.0.1:9"
    run = tracking.TrackedRun(client=MlflowClient(uri), run_id="a" * 32, tracking_uri=uri)
    (tmp_path / "metrics.json").write_bytes(b"{}")
    track.log_folder(run, str(tmp_path))
    said = capsys.readouterr().err
    assert "warning: MLflow did not take metrics.json: " in said
    assert "127.0.0.1" in said
    assert "s3cretpw9" not in said
    assert run.failures == 1
