"""Scoring on a real Ray: every video once, the same bits however many processes, bad videos listed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.servers import S3Server
from tpn_ray import storage
from tpn_ray.clips.views import parse_views
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.errors import ConfigError
from tpn_ray.predict import answers, evaluate, scoring
from tpn_ray.predict.labels import unlabelled
from tpn_ray.predict.predictor import load
from tpn_ray.predict.table import VIDEOS, read_scores
from tpn_ray.predict.videos import find_videos
from tpn_ray.resources import Resources

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def some_bad(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The validation videos of the toy dataset; two of 18 cannot be used."""
    folder = tmp_path_factory.mktemp("some_bad")
    shutil.copytree(toy_folder / "val", folder / "val")
    shutil.copytree(toy_folder / "train", folder / "train")
    (folder / "val" / "period_10" / "empty.mp4").write_bytes(b"")
    (folder / "val" / "period_49" / "text.mp4").write_text("not a video " * 100)
    return folder


def test_the_same_bits_whatever_the_number_of_workers(
    joined: None, untrained: str, some_bad: Path, tmp_path: Path
) -> None:
    question = evaluate.ask(untrained, str(some_bad), "val", "2x3", ())
    (one,) = evaluate.evaluate(question, Resources(workers=1), str(tmp_path / "one"))
    (two,) = evaluate.evaluate(question, Resources(workers=2), str(tmp_path / "two"))
    assert one.table.equals(two.table)
    assert one.table["id"].to_pylist() == question.matched.manifest.ids
    assert [r for r in one.table["reason"].to_pylist() if r] == ["empty", "not_video"]
    assert (one.numbers["videos"], one.numbers["bad_videos"]) == (16, 2)
    assert one.numbers["top1_of_all"] == pytest.approx(one.numbers["top1"] * 16 / 18)
    told = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert [Path(bad["uri"]).name for bad in told["bad"]] == ["empty.mp4", "text.mp4"]
    assert np.sum(told["label_sets"]["action"]["confusion"]) == 16
    _check_views_average_to_the_scores(tmp_path / "two")


def _check_views_average_to_the_scores(folder: Path) -> None:
    table, label_sets = read_scores(str(folder))
    views = pq.read_table(folder / "views")
    assert len(views) == 6 * 16
    assert len(label_sets["action"]) == 8
    scores = dict(zip(table["id"].to_pylist(), table["scores"].to_pylist(), strict=True))
    for start in range(0, len(views), 6):
        part = views.slice(start, 6)
        (id,) = set(part["id"].to_pylist())
        np.testing.assert_allclose(np.mean(part["scores"].to_pylist(), axis=0), scores[id], atol=1e-6)
    assert (folder / "confusion_action.png").read_bytes()[:4] == b"\x89PNG"


def test_a_prediction_has_the_bits_of_the_evaluation(
    joined: None, untrained: str, some_bad: Path, tmp_path: Path
) -> None:
    """By the job's code on Ray, and in three lines without it."""
    question = evaluate.ask(untrained, str(some_bad), "val", "2x3 random", ())
    (scored,) = evaluate.evaluate(question, Resources(), str(tmp_path / "out"))
    scores = dict(zip(scored.table["uri"].to_pylist(), scored.table["scores"].to_pylist(), strict=True))
    predictor = load(untrained)
    manifest = find_videos([str(some_bad / "val" / "period_25")], predictor.label_sets)
    blocks = scoring.score(untrained, predictor.recipe, manifest, parse_views("2x3 random"), Resources())
    found = list(answers.answers(manifest, blocks, 3))
    assert len(found) == 2
    for answer in found:
        assert answer["scores"] == scores[answer["uri"]]
        assert predictor.predict(answer["uri"], views="2x3 random").scores.tolist() == scores[answer["uri"]]
        best = max(zip(scores[answer["uri"]], predictor.label_sets["action"], strict=True))
        assert answer["action"][0] == {"class": best[1], "score": best[0]}


def test_windows_of_long_videos_stream_in_order(joined: None, untrained: str, some_bad: Path) -> None:
    predictor = load(untrained)
    whole = load_manifest(str(some_bad)).select("val")
    blocks = scoring.score_windows(
        untrained,
        predictor.recipe,
        unlabelled(whole, predictor.label_sets),
        parse_views("1x1"),
        Resources(),
        window_seconds=2.0,
        hop_seconds=1.0,
    )
    found = list(answers.answers(whole, blocks, 1))
    assert [answer["uri"] for answer in found] == sorted((a["uri"] for a in found), key=whole.uris.index)
    assert {answer["uri"] for answer in found} == set(whole.uris)
    good = [answer for answer in found if not answer["reason"]]
    assert len(good) == 16 * 4  # videos of 4.16 s: windows begin at 0, 1, 2 and 3 s
    alone = list(predictor.predict_windows(good[0]["uri"], 2.0, 1.0))
    assert [answer["scores"] for answer in good[:4]] == [one.scores.tolist() for one in alone]
    assert [(answer["start_seconds"], answer["end_seconds"]) for answer in good[:2]] == [(0.0, 2.0), (1.0, 3.0)]
    bad = [answer for answer in found if answer["reason"]]
    assert [answer["reason"] for answer in bad] == ["empty", "not_video"]


def test_what_ray_raises_is_told_by_its_innermost_error() -> None:
    outer = RuntimeError("a task failed\nTo change retry attempts, configure Ray")
    outer.__cause__ = MemoryError("no 3 GB left\nmore")
    assert str(scoring.explain(outer)) == "scoring failed: MemoryError: no 3 GB left"
    outer.__cause__ = ConfigError("a wrong field")
    assert str(scoring.explain(outer)) == "a wrong field"


def test_on_object_storage(joined: None, s3: S3Server, untrained: str, some_bad: Path) -> None:
    """Checkpoint, videos and results in a bucket; every alpha in one pass."""
    root = f"s3://{s3.bucket}/evaluate"
    for name in ("weights.pt", "training.pt", "checkpoint.json", "manifest.json"):
        storage.write_bytes(f"{root}/checkpoint/{name}", (Path(untrained) / name).read_bytes())
    videos = sorted((some_bad / "val").glob("*/*.mp4"))
    for video in videos:
        storage.write_bytes(f"{root}/videos/val/{video.parent.name}/{video.name}", video.read_bytes())
    question = evaluate.ask(f"{root}/checkpoint", f"{root}/videos", "val", "1x1", ("1,2", "4,8"))
    results = evaluate.evaluate(question, Resources(), f"{root}/out")
    assert [result.folder for result in results] == [f"{root}/out/alpha_1_2", f"{root}/out/alpha_4_8"]
    trained, _ = read_scores(results[0].folder)
    predictor = load(untrained)
    for row in trained.select(["uri", "reason", "scores"]).to_pylist():
        if not row["reason"]:
            assert row["scores"] == predictor.predict(row["uri"], views="1x1").scores.tolist()
    assert len(trained) == len(videos)
    assert not trained.equals(read_scores(results[1].folder)[0])
    assert storage.exists(storage.join(results[1].folder, VIDEOS))
