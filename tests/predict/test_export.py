"""Programs that need nothing of this project compute the same on real clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tpn_ray.clips.cut import all_views
from tpn_ray.clips.views import ViewFrames, parse_views, see
from tpn_ray.errors import ConfigError
from tpn_ray.predict import export
from tpn_ray.predict.predictor import Predictor, load
from tpn_ray.videos.decode import open_video

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch's exporters


@pytest.fixture(scope="module")
def predictor(untrained: str) -> Predictor:
    return load(untrained, device="cpu")


@pytest.fixture(scope="module")
def clips(predictor: Predictor, toy_folder: Path) -> np.ndarray:
    data = next((toy_folder / "val" / "period_25").iterdir()).read_bytes()
    with open_video(data) as video:
        seen = see(video, data, parse_views("3x1"), predictor.recipe.clip, predictor.recipe.augment)
    return all_views(seen, parse_views("3x1"), predictor.recipe.augment)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_the_file_computes_what_the_network_does(
    predictor: Predictor, clips: np.ndarray, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"program{suffix}"
    assert export.export(predictor, clips, str(out)) < 1e-5
    run = export.run_saved if suffix == ".pt2" else export.run_onnx
    five = np.concatenate([clips, clips[:2]])
    each = [ViewFrames(one, np.arange(len(one))[None], 0) for one in five]
    expected = np.concatenate([predictor.view_scores(one, parse_views("1x1")) for one in each])
    np.testing.assert_allclose(run(out.read_bytes(), five), expected, atol=1e-5)


def test_a_file_that_computes_something_else_is_refused(
    predictor: Predictor, clips: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.export, "export", lambda program, example, dynamic_shapes: None)
    monkeypatch.setattr(export, "_saved", lambda exported: b"")
    monkeypatch.setattr(export, "run_saved", lambda data, clips: np.full((len(clips), 8), 0.125, np.float32))
    with pytest.raises(ConfigError, match=r"differs from the network by .* do not use it"):
        export.export(predictor, clips, str(tmp_path / "program.pt2"))


def test_names_tell_the_form() -> None:
    with pytest.raises(ConfigError, match=r"give a name that ends in .pt2 or .onnx"):
        export.check_out("program.pth")
