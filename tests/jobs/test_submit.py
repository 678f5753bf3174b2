"""`ray job submit` on a real head, with videos and checkpoints in a real S3 store and a real MLflow server."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import mlflow.pyfunc
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.jobs.processes import submit
from tests.ray_head import BIN, RayHead
from tests.servers import S3Server
from tpn_ray import checkpoint as checkpoints
from tpn_ray import storage, tracking
from tpn_ray.datasets.toy import ToyConfig, write_toy
from tpn_ray.training import run_folder

pytestmark = pytest.mark.cluster

SUBMIT = [str(BIN / "ray"), "job", "submit"]
EPOCHS, STEPS = 20, 40


def test_train_from_s3_on_a_cluster(
    cluster: RayHead, s3: S3Server, mlflow_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    data, runs = f"s3://{s3.bucket}/toy", f"s3://{s3.bucket}/runs"
    write_toy(data, ToyConfig(train_per_class=4, val_per_class=2))
    storage.write_bytes(f"{data}/val/period_10/broken.mp4", b"this is not a video")
    job = ["--working-dir", ".", "--", "python", "jobs/train.py", "toy"]
    job += [
        "--data",
        data,
        "--storage",
        runs,
        "--tracking-uri",
        mlflow_url,
        "--name",
        "submitted",
        "--register",
        "toy_actions",
    ]
    job += ["--loop.batch-clips", "16", "--loop.micro-batch-clips", "8", "--loop.epochs", str(EPOCHS)]
    job += ["--loop.evaluate-every-epochs", str(EPOCHS // 2), "--max-bad", "0.05"]
    job += ["--saving.every-steps", "2", "--storage-seconds", "240", "--decode-tasks", "1"]
    client = {**cluster.environment, "RAY_ADDRESS": cluster.jobs_url}
    _stop_after_a_checkpoint(job, client, f"{runs}/submitted")
    assert _tracked(mlflow_url).info.status == "KILLED"
    status, output = submit([*SUBMIT, *job], client)
    assert status == 0, output
    assert re.search(r"training resumed from step \d+ with 2 workers", output), output
    assert "bad video (not_video)" in output
    assert "best checkpoint" in output
    _check_checkpoint(f"{runs}/submitted")
    _check_scores(f"{runs}/submitted/scores.parquet", tmp_path)
    _check_mlflow(mlflow_url)
    _check_model(mlflow_url, f"{runs}/submitted/scores.parquet", tmp_path)
    assert s3.secret_key not in output


def _stop_after_a_checkpoint(job: list[str], environment: dict[str, str], run: str) -> None:
    status, output = submit([*SUBMIT, "--no-wait", "--submission-id", "first", *job], environment)
    assert status == 0, output
    deadline = time.monotonic() + 200
    while not run_folder.committed_steps(run):
        assert time.monotonic() < deadline, "no checkpoint in 200 s"
        time.sleep(0.2)
    command = [str(BIN / "ray"), "job", "stop", "first"]
    stopped = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=60)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert run_folder.committed_steps(run)[-1] < STEPS, "it was over before it was stopped"
    logs = [str(BIN / "ray"), "job", "logs", "first"]
    said = subprocess.run(logs, check=True, env=environment, capture_output=True, text=True, timeout=60).stdout
    assert "stopped; the same command with --name submitted resumes where this one stopped" in said, said


def _check_checkpoint(run: str) -> None:
    saved = checkpoints.load(f"{run}/step-{STEPS:08d}")
    assert saved.step == STEPS
    assert len(saved.label_sets["action"]) == 8


def _check_scores(uri: str, folder: Path) -> None:
    (folder / "scores.parquet").write_bytes(storage.read_bytes(uri))
    table = pq.read_table(folder / "scores.parquet").to_pylist()
    assert len(table) == 17
    bad = [row for row in table if row["reason"]]
    assert [storage.name(row["uri"]) for row in bad] == ["broken.mp4"]
    assert all(sum(row["scores"]) == pytest.approx(0 if row["reason"] else 1, abs=1e-5) for row in table)


def _check_model(url: str, scores_uri: str, folder: Path) -> None:
    """The registered model gives a video the very scores that the run gave it."""
    (folder / "scores.parquet").write_bytes(storage.read_bytes(scores_uri))
    row = next(row for row in pq.read_table(folder / "scores.parquet").to_pylist() if not row["reason"])
    mlflow.set_tracking_uri(url)
    (answer,) = mlflow.pyfunc.load_model("models:/toy_actions/1").predict([row["uri"]])
    assert len(answer["action"]) == 8
    assert sorted(answer["action"].values()) == pytest.approx(sorted(row["scores"]), abs=1e-6)


def _tracked(url: str) -> Run:
    client = MlflowClient(url)
    experiment = client.get_experiment_by_name("tpn_ray")
    (run,) = [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == "submitted"]
    return run


def _check_mlflow(url: str) -> None:
    client, run = MlflowClient(url), _tracked(url)
    experiment = client.get_experiment_by_name("tpn_ray")
    assert run.info.status == "FINISHED"
    steps = list(range(2, STEPS + 1, 2))  # each once, though the run was stopped in between
    assert run.data.params["model.backbone"] == "slowonly_toy"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == steps
    assert {"val/top1", "val/best_top1", "train/lr", "train/waiting_for_data"} <= set(run.data.metrics)
    assert experiment.tags[tracking.KIND_TAG] == tracking.KIND
    assert "TPN over res(4, 5)" in run.data.tags["mlflow.note.content"]
    assert run.data.tags["best_checkpoint"].endswith((f"step-{STEPS // 2:08d}", f"step-{STEPS:08d}"))
    assert len(run.data.tags["code_sha256"]) == 64
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"recipe.json", "classes.json", "scores.json", "bad.json"} <= files
    recipe = json.loads(Path(client.download_artifacts(run.info.run_id, "recipe.json")).read_text())
    assert recipe["loop"]["epochs"] == EPOCHS
