from __future__ import annotations

import numpy as np
import torch

from tpn_ray.clips import rows
from tpn_ray.clips.cut import all_views
from tpn_ray.clips.sampling import ClipConfig
from tpn_ray.clips.seen import columns, of_row
from tpn_ray.clips.views import ViewFrames, parse_views
from tpn_ray.model.pixels import Normalise
from tpn_ray.predict.scorer import SCORES, VIEW_SCORES, Scorer

VIEWS = parse_views("3x1")


def block(videos: int, reasons: list[str]) -> dict[str, np.ndarray]:
    random, places = np.random.default_rng(0), np.arange(24).reshape(3, 8)
    frames = [random.integers(0, 256, (24, 48, 48, 3), dtype=np.uint8) for _ in range(videos)]
    return {
        rows.SAMPLE: np.arange(videos),
        **columns([ViewFrames(one, places, 0) for one in frames], VIEWS, ClipConfig(frames=8)),
        rows.LABELS: np.zeros((videos, 1), np.int64),
        rows.REASON: np.array(reasons),
        rows.MESSAGE: np.array(reasons),
    }


def test_a_score_is_the_mean_softmax_over_views_and_bad_videos_have_none(untrained: str) -> None:
    scorer, made = Scorer(untrained, VIEWS, 1, [()], keep_views=True), block(2, ["", "empty"])
    scored = scorer(made)
    assert rows.PIXELS not in scored
    views = all_views(of_row(made, 0), VIEWS, scorer.predictor.recipe.augment)
    with torch.inference_mode():
        outputs = scorer.predictor.model(Normalise()(torch.tensor(views))).action
    np.testing.assert_allclose(scored[SCORES][0, 0], outputs.softmax(1).mean(0).numpy(), rtol=1e-5)
    np.testing.assert_allclose(scored[VIEW_SCORES][0, 0], outputs.softmax(1).numpy(), rtol=1e-5)
    assert not scored[SCORES][1].any()


def test_a_score_does_not_depend_on_the_neighbours(untrained: str) -> None:
    scorer, made = Scorer(untrained, VIEWS, 1, [()], keep_views=False), block(3, ["", "", ""])
    middle = of_row(made, 1)
    alone = scorer({**block(1, [""]), **columns([middle], VIEWS, ClipConfig(frames=8))})
    assert np.array_equal(alone[SCORES][0], scorer(made)[SCORES][1])
    assert VIEW_SCORES not in alone


def test_every_alpha_is_scored_and_the_trained_one_comes_back(untrained: str) -> None:
    made = block(1, [""])
    together = Scorer(untrained, VIEWS, 1, [(2, 4), (), (8, 8)], keep_views=False)(made)[SCORES][0]
    assert len({one.tobytes() for one in together}) == 3
    for place, alpha in enumerate([(2, 4), (), (8, 8)]):
        assert np.array_equal(
            Scorer(untrained, VIEWS, 1, [alpha], keep_views=False)(made)[SCORES][0, 0], together[place]
        )
    assert np.array_equal(Scorer(untrained, VIEWS, 1, [(1, 2)], keep_views=False)(made)[SCORES][0, 0], together[1])
