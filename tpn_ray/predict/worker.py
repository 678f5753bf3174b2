"""Views of a video -> its class scores. Runs on Ray Data actors that hold the network, and anywhere without Ray."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tpn_ray import checkpoint as checkpoints
from tpn_ray.data import rows
from tpn_ray.data.worker import Rows
from tpn_ray.metrics import average_views
from tpn_ray.model.pixels import normalise
from tpn_ray.model.recognizer import Recognizer, build_model
from tpn_ray.train.recipe import Recipe, from_plain

SCORES = "scores"
"""float32 (k,): mean over the views of the softmax of each label set; zeros for a bad video."""

VIEWS_AT_ONCE = 32


class Scorer:
    """A network of a checkpoint. Each video is computed by itself, so its score does not depend on its neighbours."""

    def __init__(self, checkpoint_uri: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model, self.recipe = load_model(checkpoint_uri)
        self.model.to(self.device)

    def __call__(self, batch: Rows) -> Rows:
        scores = np.stack(
            [
                self.score(views) if not reason else np.zeros(sum(self.recipe.model.label_sets), np.float32)
                for views, reason in zip(batch[rows.VIEWS], batch[rows.REASON], strict=True)
            ]
        )
        kept = (rows.SAMPLE, rows.LABELS, rows.REASON, rows.MESSAGE)
        return {**{column: batch[column] for column in kept}, SCORES: scores}

    @torch.inference_mode()
    def score(self, views: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """uint8 (v, t, h, w, c) -> float32 (k,), on the scale of probabilities."""
        pixels = torch.tensor(views)  # a copy: the views are read-only memory of the object store
        outputs = [self.model(normalise(part.to(self.device))).action for part in torch.split(pixels, VIEWS_AT_ONCE)]
        return average_views(torch.cat(outputs), self.recipe.model.label_sets).cpu().numpy()


def load_model(checkpoint_uri: str) -> tuple[Recognizer, Recipe]:
    """The network of a checkpoint in evaluation mode, and its recipe."""
    saved = checkpoints.load(checkpoint_uri)
    recipe = from_plain(saved.recipe)
    model = build_model(recipe.model, "fast")
    model.load_state_dict(saved.weights)
    return model.eval(), recipe
