"""Evaluating, comparing and predicting as a user does, and what a user gets wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from tests.checkpoints import save_untrained
from tests.jobs.processes import refusal, run_on
from tests.ray_head import RayHead

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of the recipe toy with random weights."""
    return save_untrained(tmp_path_factory.mktemp("checkpoint"))


def test_score_track_and_compare(cluster: RayHead, untrained: str, toy_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(toy_folder, data)
    (data / "val" / "period_10" / "text.mp4").write_text("not a video " * 100)
    store, out = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "out"
    flags = ["--checkpoint", untrained, "--data", str(data), "--alpha", "1,2", "4,8", "--out", str(out)]
    status, output = run_on(cluster, "evaluate", *flags, "--tracking-uri", store, "--max-bad", "0")
    assert status == 2, output
    assert "1 of 17 videos are bad (1 not_video), the budget allows 0" in output
    assert "16 videos scored; 1 could not be used, 0 were quarantined" in output
    assert "text.mp4 (not_video)" in output
    metrics = json.loads((out / "alpha_4_8" / "metrics.json").read_text())
    assert metrics["numbers"]["bad_videos"] == 1
    client = MlflowClient(store)
    (tracked,) = client.search_runs([client.get_experiment_by_name("tpn_ray").experiment_id])
    assert tracked.data.metrics["val/alpha_4_8/top1"] == metrics["numbers"]["top1"]
    files = {file.path for file in client.list_artifacts(tracked.info.run_id, "alpha_4_8")}
    assert {"alpha_4_8/metrics.json", "alpha_4_8/confusion_action.png"} <= files
    status, output = run_on(
        cluster, "compare", str(out / "alpha_1_2"), str(out / "alpha_4_8"), "--out", str(tmp_path / "both")
    )
    assert status == 0, output
    assert "1 videos could not be used by one or both and are left out" in output
    (found,) = json.loads((tmp_path / "both" / "comparison.json").read_text())
    assert found["videos"] == 16
    assert (tmp_path / "both" / "gains_action.png").exists()


def test_predict_a_folder(cluster: RayHead, untrained: str, toy_folder: Path, tmp_path: Path) -> None:
    videos, out = toy_folder / "val" / "period_10", tmp_path / "found.parquet"
    status, output = run_on(
        cluster, "predict", "--checkpoint", untrained, "--videos", str(videos), "--out", str(out), "--top", "2"
    )
    assert status == 0, output
    assert "2 answers, 0 of them for videos that could not be used" in output
    table = pq.read_table(out).to_pylist()
    assert [Path(row["uri"]).parent.name for row in table] == ["period_10"] * 2
    for row in table:
        assert row["action"][0]["score"] == pytest.approx(max(row["scores"]))
        assert len(row["action"]) == 2
        assert row["action"][0]["class"].startswith("period_")


def test_what_a_user_gets_wrong(untrained: str, toy_folder: Path, tmp_path: Path) -> None:
    foreign = save_untrained(tmp_path / "foreign", tuple("abcdefgh"))
    data = ["--data", str(toy_folder)]
    cases = {
        "trained on 8 classes (a, b, c, d, e, ...) (action)": ("evaluate", "--checkpoint", foreign, *data),
        "is not a complete checkpoint": ("evaluate", "--checkpoint", str(tmp_path / "none"), *data),
        "views '3x7' are not known": ("evaluate", "--checkpoint", untrained, *data, "--views", "3x7"),
        "a multiple of the one before": ("evaluate", "--checkpoint", untrained, *data, "--alpha", "2,3"),
        "nothing at": ("predict", "--checkpoint", untrained, "--videos", str(tmp_path / "gone")),
        "give a name that ends in .jsonl": (
            "predict",
            "--checkpoint",
            untrained,
            "--videos",
            "a.mp4",
            "--out",
            "x.txt",
        ),
        "give a folder that jobs/evaluate.py wrote": ("compare", str(tmp_path / "x"), str(tmp_path / "y")),
    }
    for expected, arguments in cases.items():
        assert expected in refusal(*arguments)
