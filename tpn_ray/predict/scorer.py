"""From views of videos to their class scores. Runs on Ray Data actors that hold the network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from tpn_ray.clips import rows
from tpn_ray.clips.rows import Rows
from tpn_ray.clips.seen import of_row
from tpn_ray.clips.views import Views
from tpn_ray.metrics import average_views
from tpn_ray.predict.predictor import EXACT, Alpha, Arithmetic, load

SCORES = "scores"
"""float32 (a, k): for each alpha, the mean over the views of the softmax of each label set (of the sigmoid of each
class, where videos have several); zeros for a bad video."""

VIEW_SCORES = "view_scores"
"""float32 (a, v, k): the same for each view, if requested."""

KEPT = (rows.SAMPLE, rows.SECONDS, rows.LABELS, rows.REASON, rows.MESSAGE)


class Scorer:
    """A checkpoint's network, scored with each of `alphas` (an empty one is the trained one)."""

    def __init__(
        self,
        checkpoint_uri: str,
        views: Views,
        threads: int,
        alphas: Sequence[Alpha],
        keep_views: bool,
        device: str = "cpu",
        arithmetic: Arithmetic = EXACT,
    ) -> None:
        exactly = dataclasses.asdict(arithmetic)
        self.predictor = load(checkpoint_uri, device=device, threads=threads, **exactly)
        self.views, self.alphas, self.keep_views = views, alphas, keep_views

    def __call__(self, batch: Rows) -> Rows:
        classes = sum(self.predictor.recipe.model.label_sets)
        shape = (len(batch[rows.REASON]), len(self.alphas), self.views.count, classes)
        scores = np.zeros(shape, dtype=np.float32)
        # All videos are sent to the device before the scores of the first are taken from it: it never waits for one.
        launched = {
            row: [self.predictor.launch(of_row(batch, row), self.views, alpha) for alpha in self.alphas]
            for row, reason in enumerate(batch[rows.REASON])
            if not reason
        }
        for row, made in launched.items():
            scores[row] = torch.stack(made).cpu().numpy()
        averaged = [[average_views(one) for one in video] for video in scores]
        scored = {column: batch[column] for column in KEPT if column in batch}
        scored[SCORES] = np.array(averaged, dtype=np.float32)
        return {**scored, VIEW_SCORES: scores} if self.keep_views else scored
