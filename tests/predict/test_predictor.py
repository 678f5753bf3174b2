"""Three lines of Python, without Ray."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.jobs.processes import ROOT
from tpn_ray import recipes
from tpn_ray.errors import BadVideo, CheckpointError, ConfigError
from tpn_ray.model.convolution_check import ConvolutionReport
from tpn_ray.predict import predictor
from tpn_ray.predict.predictor import even_portions, load, parse_alphas
from tpn_ray.recipe import Recipe, replace_fields


def test_three_lines(untrained: str, toy_folder: Path) -> None:
    predictor = load(untrained)
    prediction = predictor.predict(str(next((toy_folder / "val" / "period_10").iterdir())))
    best = prediction.top(3)["action"]
    assert len(best) == 3
    assert best[0][1] == max(prediction.scores)
    assert prediction.scores.sum() == pytest.approx(1)
    assert f"<tr><th>{best[0][0]}</th><td>{best[0][1]:.1%}</td></tr>" in prediction._repr_html_()


def test_no_ray_is_imported() -> None:
    """A user who only predicts needs no cluster's packages in memory."""
    script = "import sys; import tpn_ray.predict.predictor; print('ray' in sys.modules, 'mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_bad_video_says_why(untrained: str, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video " * 100)
    with pytest.raises(BadVideo) as told:
        load(untrained).predict(str(tmp_path / "text.mp4"))
    assert told.value.reason == "not_video"


def test_threads_of_the_caller_stay(untrained: str, toy_folder: Path) -> None:
    video = str(next((toy_folder / "val" / "period_10").iterdir()))
    before = torch.get_num_threads()
    load(untrained, threads=before + 1).predict(video)
    assert torch.get_num_threads() == before


def test_other_arithmetic_moves_scores_by_little(
    untrained: str, toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "convolution_self_test", lambda *_: ConvolutionReport(True, "none", 0.0))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    video = str(next((toy_folder / "val" / "period_10").iterdir()))
    exact = load(untrained).predict(video).scores
    folded, coarse = load(untrained, fold_norms=True), load(untrained, precision="bf16")
    np.testing.assert_allclose(folded.predict(video).scores, exact, rtol=0, atol=1e-5)
    found = coarse.predict(video).scores
    assert 0 < np.abs(found - exact).max() < 1e-2
    assert found.dtype == np.float32
    assert torch.backends.cudnn.allow_tf32


def test_bf16_is_refused_where_it_gives_wrong_numbers(untrained: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "convolution_self_test", lambda *_: ConvolutionReport(False, "stem.conv", 0.5))
    with pytest.raises(ConfigError, match=r"precision='bf16' .* stem.conv is off by 50.0%; use fp32"):
        load(untrained, precision="bf16")
    with pytest.raises(ConfigError, match="precision='half' must be"):
        load(untrained, precision="half")  # type: ignore[arg-type]


def test_portions_are_even() -> None:
    assert [len(part) for part in even_portions(range(30), 24)] == [15, 15]
    assert [len(part) for part in even_portions(range(7), 3)] == [2, 2, 3]
    assert [item for part in even_portions(range(7), 0) for item in part] == list(range(7))


def test_foreign_weights_are_refused(untrained: str, tmp_path: Path) -> None:
    from tpn_ray import checkpoint as checkpoints

    saved = checkpoints.load(untrained)
    checkpoints.save(tmp_path, replace(saved, weights={"other": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="do not fit the network of its recipe"):
        load(str(tmp_path))


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return replace_fields(recipes.toy(), {"clip.frames": 4})


def test_alphas_as_written(recipe: Recipe) -> None:
    assert parse_alphas(["4,8", "8,8"], recipe) == [(4, 8), (8, 8)]
    assert parse_alphas([], recipe) == []
    assert parse_alphas(["every"], recipe) == [(1, 1), (1, 2), (1, 4), (2, 2), (2, 4), (4, 4)]
    for text, message in (("a", "write numbers"), ("2,3", "a multiple of"), ("2", "has 1 entries")):
        with pytest.raises(ConfigError, match=message):
            parse_alphas([text], recipe)
    plain = replace_fields(recipe, {"model.neck": "none", "loss.lambdas": ()})
    with pytest.raises(ConfigError, match="has no pyramid"):
        parse_alphas(["1,2"], plain)
