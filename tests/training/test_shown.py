"""The picture of clips shows what a step of training gets."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tpn_ray import recipes
from tpn_ray.clips import rows
from tpn_ray.data.tasks import ClipSource, training_rows
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import ConfigError
from tpn_ray.recipe import Recipe, replace_fields
from tpn_ray.training.run_plan import make_plan
from tpn_ray.training.shown import Shown, training_clips

SMALL = replace_fields(
    recipes.toy(), {"loop.epochs": 2, "loop.batch_clips": 8, "loop.micro_batch_clips": 4, "loop.seed": 3}
)


def shown(manifest: Manifest, recipe: Recipe, epoch: int = 1, count: int = 6, gone: int = -1) -> list[Shown]:
    train = manifest.select("train")
    if gone >= 0:
        uris = [f"{uri}.gone" if row == gone else uri for row, uri in enumerate(train.uris)]
        train = dataclasses.replace(train, uris=uris)
    source = ClipSource(manifest=train, clip=recipe.clip, augment=recipe.augment, seed=recipe.loop.seed)
    return training_clips(source, make_plan(recipe, manifest), recipe.loss, epoch, count)


def test_clips_are_those_of_the_first_step(manifest: Manifest) -> None:
    plan, train = make_plan(SMALL, manifest), manifest.select("train")
    source = ClipSource(manifest=train, clip=SMALL.clip, augment=SMALL.augment, seed=3)
    first = plan.slot(0, 1, plan.first_step(1))
    clips = shown(manifest, SMALL)
    assert len(clips) == 6
    trained = training_rows(source, [first])[rows.CLIP]
    assert all(np.array_equal(frames, clip) for (_, frames), clip in zip(clips, trained, strict=False))
    assert clips[0][0].startswith("period_")
    assert train.ids[int(first.samples[0])] in clips[0][0]


def test_what_is_done_at_the_network_is_shown(manifest: Manifest) -> None:
    plain = shown(manifest, SMALL, count=4)
    changed = shown(manifest, replace_fields(SMALL, {"augment.rand_operations": 2}), count=4)
    mixed = shown(manifest, replace_fields(SMALL, {"loss.mixup": 0.8}), count=4)
    for other in (changed, mixed):
        assert any(not np.array_equal(a, b) for (_, a), (_, b) in zip(plain, other, strict=True))
    assert [said for said, _ in changed] == [said for said, _ in plain]
    assert all("% + period_" in said for said, _ in mixed)


def test_a_bad_video_is_named_and_black(manifest: Manifest) -> None:
    plan = make_plan(SMALL, manifest)
    gone = int(plan.slot(0, 1, plan.first_step(1)).samples[2])
    clips = shown(manifest, replace_fields(SMALL, {"loss.mixup": 0.8}), count=4, gone=gone)
    assert [frames.any() for _, frames in clips] == [True, True, False, True]
    assert clips[2][0].endswith("missing")


def test_an_epoch_that_the_recipe_does_not_have(manifest: Manifest) -> None:
    with pytest.raises(ConfigError, match="epoch=2 must be from 0 to 1: the recipe has 2 epochs"):
        shown(manifest, SMALL, epoch=2)
