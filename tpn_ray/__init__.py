"""Train, tune, and apply Temporal Pyramid Networks to videos in object storage, on a Ray cluster.

This is the front door. A recipe holds every setting that affects accuracy, and its `model` part builds a network:

>>> import tpn_ray
>>> recipe = tpn_ray.RECIPES["toy"]()
>>> (recipe.clip.frames, recipe.clip.stride_frames, recipe.loss.lambdas)
(16, 4, (0.5,))
>>> model = tpn_ray.build_model(recipe.model)

`train`, `tune`, and `evaluate` do what the jobs with the same names do; one object holds what a job takes as flags:

>>> job = tpn_ray.TrainingJob(data="my_videos", recipe=recipe, storage="s3://bucket/runs")
>>> result = tpn_ray.train(job)  # doctest: +SKIP
>>> tpn_ray.load(result.best).predict("video.mp4")  # doctest: +SKIP

Problems that the user can fix are raised as a `TpnRayError`. Submodules are imported on first use, because importing
torch and Ray takes seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpn_ray.commands.compare import compare
    from tpn_ray.commands.evaluate import EvaluationJob, evaluate
    from tpn_ray.commands.prepare import PreparationJob, prepare_dataset
    from tpn_ray.commands.train import TrainingJob, train
    from tpn_ray.commands.tune import TuningJob, tune
    from tpn_ray.datasets.toy import ToyConfig, write_toy
    from tpn_ray.errors import TpnRayError
    from tpn_ray.model.recognizer import ModelConfig, build_model
    from tpn_ray.predict.predictor import load
    from tpn_ray.recipe import Recipe, replace_fields
    from tpn_ray.recipes import RECIPES

__version__ = "0.1.0"

__all__ = [
    "RECIPES",
    "EvaluationJob",
    "ModelConfig",
    "PreparationJob",
    "Recipe",
    "ToyConfig",
    "TpnRayError",
    "TrainingJob",
    "TuningJob",
    "build_model",
    "compare",
    "evaluate",
    "load",
    "prepare_dataset",
    "replace_fields",
    "train",
    "tune",
    "write_toy",
]

_HOMES = {
    "errors": ("TpnRayError",),
    "commands.compare": ("compare",),
    "commands.prepare": ("PreparationJob", "prepare_dataset"),
    "datasets.toy": ("ToyConfig", "write_toy"),
    "commands.evaluate": ("EvaluationJob", "evaluate"),
    "model.recognizer": ("ModelConfig", "build_model"),
    "predict.predictor": ("load",),
    "recipe": ("Recipe", "replace_fields"),
    "recipes": ("RECIPES",),
    "commands.train": ("TrainingJob", "train"),
    "commands.tune": ("TuningJob", "tune"),
}


def __getattr__(name: str) -> Any:
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'tpn_ray' has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(importlib.import_module(f"tpn_ray.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
