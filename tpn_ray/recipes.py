"""RECIPES: complete settings by name. A variant calls another recipe and replaces fields. Plain data; runs anywhere."""

from __future__ import annotations

from collections.abc import Callable

from tpn_ray.clips.augment import AugmentConfig
from tpn_ray.clips.sampling import ClipConfig
from tpn_ray.errors import ConfigError
from tpn_ray.model.recognizer import ModelConfig
from tpn_ray.names import no_such
from tpn_ray.recipe import LoopConfig, LossConfig, OptimConfig, Recipe, replace_fields


def toy() -> Recipe:
    """Learn the tempo of synthetic videos in about a minute on two cores."""
    return Recipe(
        clip=ClipConfig(frames=16, stride_frames=4),
        # The class is the tempo, not the place or the color: crops stay large, and colors stay as they are.
        augment=AugmentConfig(
            crop_px=48, test_short_side_px=48, area=(0.6, 1.0), brightness=0, contrast=0, saturation=0, hue=0
        ),
        model=ModelConfig(backbone="slowonly_toy", classes=8, alpha=(1, 2), dropout=0.2),
        loss=LossConfig(lambdas=(0.5,)),
        optim=OptimConfig(lr=0.1, schedule="cosine", warmup=0.1),
        loop=LoopConfig(epochs=10, batch_clips=32, micro_batch_clips=16, evaluate_every_epochs=2),
    )


def toy_small() -> Recipe:
    """`toy` at a fraction of the cost, for campaigns on a CPU: small frames, and small batches that learn quickly."""
    changes = {
        "augment.crop_px": 32,
        "augment.test_short_side_px": 32,
        "optim.lr": 0.05,
        "optim.warmup": 0.02,
        "loop.batch_clips": 8,
        "loop.micro_batch_clips": 8,
    }
    return replace_fields(toy(), changes)


def toy_frames() -> Recipe:
    """A TSN of the same size as `toy`. It sees only single frames and is used to measure tempo (jobs/tempo.py)."""
    changes = {
        "clip.frames": 8,
        "clip.stride_frames": 1,
        "clip.sampling": "segments",
        "model.backbone": "tsn_toy",
        "model.neck": "none",
        "loss.lambdas": (),
    }
    return replace_fields(toy(), changes)


def k400_r50_8x8() -> Recipe:
    """SlowOnly-R50 + TPN on Kinetics-400, 8 frames at stride 8 (published: 76.1 top-1 with 10 x 3 views).

    As in the released code: alpha (8, 8), cascade flow, learning rate drops at epochs 75 and 125 of 150 (the paper: 100
    and 125), Nesterov momentum, gradient clipping at 40, and random resized crops with color jitter (the paper: short
    side 256 to 320).
    """
    return Recipe()


def k400_r50_16x4() -> Recipe:
    """`k400_r50_8x8` with 16 frames at stride 4 (published: 77.3)."""
    return replace_fields(k400_r50_8x8(), {"clip.frames": 16, "clip.stride_frames": 4, "model.alpha": (16, 16)})


def k400_r50_32x2() -> Recipe:
    """`k400_r50_8x8` with 32 frames at stride 2 (published: 77.7)."""
    return replace_fields(k400_r50_8x8(), {"clip.frames": 32, "clip.stride_frames": 2, "model.alpha": (32, 32)})


def k400_r101_8x8() -> Recipe:
    """SlowOnly-R101 + TPN (published: 77.2). The released configurations keep two frames on res4, as the paper does."""
    return replace_fields(k400_r50_8x8(), {"model.backbone": "slowonly_r101", "model.alpha": (4, 8)})


def k400_r101_16x4() -> Recipe:
    """`k400_r101_8x8` with 16 frames at stride 4 (published: 78.1)."""
    return replace_fields(k400_r101_8x8(), {"clip.frames": 16, "clip.stride_frames": 4, "model.alpha": (8, 16)})


def k400_r101_32x2() -> Recipe:
    """`k400_r101_8x8` with 32 frames at stride 2 (published: 78.9)."""
    return replace_fields(k400_r101_8x8(), {"clip.frames": 32, "clip.stride_frames": 2, "model.alpha": (16, 32)})


def k400_tsn_r50() -> Recipe:
    """TSN-R50 + TPN, 8 segments (the paper's table 3: 73.5 with ten crops; no code or weights were released)."""
    changes = {"clip.sampling": "segments", "clip.stride_frames": 1, "model.backbone": "tsn_r50"}
    return replace_fields(k400_r50_8x8(), changes)


def sthv1_tsm_r50() -> Recipe:
    """TSM-R50 + TPN on Something-Something V1, 8 segments (published: 49.0 with one center view).

    Clips are not mirrored. The published code mirrors them, which swaps "left" and "right" in 5 of the 174 classes.
    """
    changes = {
        "clip.sampling": "segments",
        "clip.stride_frames": 1,
        "model.backbone": "tsm_r50",
        "model.classes": 174,
        "augment.flip": 0.0,
        "optim.weight_decay": 5e-4,
        "optim.clip_norm": 20.0,
    }
    return replace_fields(k400_r50_8x8(), changes)


def sthv2_tsm_r50() -> Recipe:
    """The same recipe on Something-Something V2 (published: 62.0 with one center view)."""
    return sthv1_tsm_r50()


def sth_tsn_r50() -> Recipe:
    """TSN-R50 + TPN on Something-Something (the paper's table 4: 40.6 on V1, 55.2 on V2)."""
    return replace_fields(sthv1_tsm_r50(), {"model.backbone": "tsn_r50"})


def epic_tsn_r50() -> Recipe:
    """TSN-R50 + TPN on EPIC-Kitchens, verbs and nouns (the paper's table 5: 61.1 and 41.3; 55 epochs).

    Nothing was released for EPIC: the milestones and the weight decay are those of Kinetics.
    """
    return replace_fields(k400_tsn_r50(), {"model.classes": (125, 352), "loop.epochs": 55})


RECIPES: dict[str, Callable[[], Recipe]] = {
    function.__name__: function
    for function in (
        toy,
        toy_small,
        toy_frames,
        k400_r50_8x8,
        k400_r50_16x4,
        k400_r50_32x2,
        k400_r101_8x8,
        k400_r101_16x4,
        k400_r101_32x2,
        k400_tsn_r50,
        sthv1_tsm_r50,
        sthv2_tsm_r50,
        sth_tsn_r50,
        epic_tsn_r50,
    )
}


def described() -> dict[str, str]:
    """Return the first sentence about each recipe, by name."""
    return {name: (function.__doc__ or "").split("\n")[0].replace("`", "") for name, function in RECIPES.items()}


def recipe(name: str) -> Recipe:
    """Return the recipe with the given name."""
    if name not in RECIPES:
        raise ConfigError(no_such("recipe", name, RECIPES))
    return RECIPES[name]()
