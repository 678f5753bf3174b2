"""RECIPES: complete settings by name; a variant calls another and replaces fields. Plain data; runs anywhere."""

from __future__ import annotations

from collections.abc import Callable

from tpn_ray.clips.augment import AugmentConfig
from tpn_ray.clips.sampling import ClipConfig
from tpn_ray.errors import ConfigError
from tpn_ray.model.recognizer import ModelConfig
from tpn_ray.train.loss import LossConfig
from tpn_ray.train.optim import OptimConfig
from tpn_ray.train.recipe import Recipe
from tpn_ray.train.step import LoopConfig


def toy() -> Recipe:
    """Learns the tempo of made videos in about a minute on two cores."""
    return Recipe(
        clip=ClipConfig(frames=16, stride_frames=4),
        # The class is the tempo, not the place or the colour: crops stay large, colours stay as they are.
        augment=AugmentConfig(
            crop_px=48, test_short_side_px=48, area=(0.6, 1.0), brightness=0, contrast=0, saturation=0, hue=0
        ),
        model=ModelConfig(backbone="slowonly_toy", classes=8, alpha=(1, 2), dropout=0.2),
        loss=LossConfig(lambdas=(0.5,)),
        optim=OptimConfig(lr=0.1, schedule="cosine", warmup=0.1),
        loop=LoopConfig(epochs=10, batch_clips=32, micro_batch_clips=16, evaluate_every_epochs=2),
    )


def k400_r50_8x8() -> Recipe:
    """SlowOnly-R50 + TPN on Kinetics-400, 8 frames at stride 8, as published (76.1 top-1 with 10 x 3 views)."""
    return Recipe()


RECIPES: dict[str, Callable[[], Recipe]] = {
    "toy": toy,
    "k400_r50_8x8": k400_r50_8x8,
}


def recipe(name: str) -> Recipe:
    """The recipe of that name."""
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}; known: {', '.join(RECIPES)}")
    return RECIPES[name]()
