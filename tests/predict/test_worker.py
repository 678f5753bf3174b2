from __future__ import annotations

import numpy as np
import pytest
import torch

from tpn_ray import checkpoint as checkpoints
from tpn_ray import recipes
from tpn_ray.checkpoint import Checkpoint
from tpn_ray.data import rows
from tpn_ray.model.pixels import normalise
from tpn_ray.model.recognizer import build_model
from tpn_ray.predict.worker import SCORES, Scorer
from tpn_ray.train.recipe import to_plain


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    recipe = recipes.toy()
    folder = tmp_path_factory.mktemp("checkpoint")
    saved = Checkpoint(
        step=1,
        weights=build_model(recipe.model).state_dict(),
        training={},
        recipe=to_plain(recipe),
        label_sets={"action": list("abcdefgh")},
        dataset_version="v",
    )
    checkpoints.save(folder, saved)
    return str(folder)


def block(videos: int, reasons: list[str]) -> dict[str, np.ndarray]:
    pixels = np.random.default_rng(0).integers(0, 256, (videos, 3, 8, 48, 48, 3), dtype=np.uint8)
    return {
        rows.SAMPLE: np.arange(videos),
        rows.VIEWS: pixels,
        rows.LABELS: np.zeros((videos, 1), np.int64),
        rows.REASON: np.array(reasons),
        rows.MESSAGE: np.array(reasons),
    }


def test_a_score_is_the_mean_softmax_over_views_and_bad_videos_have_none(checkpoint: str) -> None:
    scorer, made = Scorer(checkpoint, threads=1), block(2, ["", "empty"])
    scored = scorer(made)
    assert rows.VIEWS not in scored
    with torch.inference_mode():
        outputs = scorer.model(normalise(torch.tensor(made[rows.VIEWS][0]))).action
    np.testing.assert_allclose(scored[SCORES][0], outputs.softmax(1).mean(0).numpy(), rtol=1e-5)
    assert not scored[SCORES][1].any()


def test_a_score_does_not_depend_on_the_neighbours(checkpoint: str) -> None:
    scorer, made = Scorer(checkpoint, threads=1), block(3, ["", "", ""])
    alone = scorer({name: column[1:2] for name, column in made.items()})
    assert np.array_equal(alone[SCORES][0], scorer(made)[SCORES][1])
