"""Networks of flow train on what is stored beside the videos, and go on with the same bits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tpn_ray.clips import rows
from tpn_ray.data.tasks import ClipSource, evaluation_rows, training_rows
from tpn_ray.datasets.manifest import Manifest, load_manifest
from tpn_ray.errors import ConfigError
from tpn_ray.recipe import Recipe, replace_fields
from tpn_ray.reproduce.tables import table
from tpn_ray.training.run_plan import make_plan, make_schedule, recipe_for
from tpn_ray.training.step import MicroBatch, Training
from tpn_ray.training.stream import Stream
from tpn_ray.training.writer import copied
from tpn_ray.tuning.cost import gmacs

SMALL = {
    "loop.batch_clips": 4,
    "loop.micro_batch_clips": 4,
    "loop.epochs": 2,
    "clip.frames": 4,
    "augment.crop_px": 32,
    "augment.test_short_side_px": 32,
}
STEPS = 3
KINDS = {"I3D (flow)": (4, 2, 2), "TSN + TPN (flow)": (20, 2, 10)}
"""Row of a table -> pictures of a clip, values of a pixel, input channels of the network."""


def flow_recipe(name: str, manifest: Manifest) -> Recipe:
    row = table("2" if name.startswith("I3D") else "5").named(name)
    return recipe_for(replace_fields(row.recipe("toy", seed=3), SMALL), manifest)


def source_of(recipe: Recipe, manifest: Manifest, split: str = "train") -> ClipSource:
    shown = manifest.select(split).showing("flow")
    return ClipSource(manifest=shown, clip=recipe.clip, augment=recipe.augment, seed=recipe.loop.seed)


def training(recipe: Recipe) -> Training:
    torch.set_num_threads(1)
    return Training(recipe.model, recipe.loss, recipe.optim, recipe.loop, "cpu")


def trained(network: Training, recipe: Recipe, manifest: Manifest) -> dict[str, torch.Tensor]:
    """The weights after the rest of STEPS, with clips made anew."""
    plan, source = make_plan(recipe, manifest), source_of(recipe, manifest)
    for step in range(network.step, STEPS):
        made = training_rows(source, [plan.slot(step, 1)])
        assert not made[rows.REASON].any()
        clips, labels = torch.from_numpy(made[rows.CLIP]), torch.from_numpy(made[rows.LABELS])
        network.train_step([MicroBatch(0, clips, labels)], STEPS)
    return network.model.state_dict()


@pytest.mark.parametrize("name", KINDS)
def test_a_run_of_flow_resumes_with_the_same_bits(name: str, flow_dataset: str) -> None:
    manifest = load_manifest(flow_dataset)
    recipe = flow_recipe(name, manifest)
    pictures, colors, channels = KINDS[name]
    assert (recipe.clip.pictures, recipe.clip.colors, recipe.model.in_channels) == (pictures, colors, channels)
    assert gmacs(recipe) > 0
    whole = trained(training(recipe), recipe, manifest)
    first, second = training(recipe), training(recipe)
    plan, source = make_plan(recipe, manifest), source_of(recipe, manifest)
    made = training_rows(source, [plan.slot(0, 1)])
    assert made[rows.CLIP].shape == (4, pictures, 32, 32, colors)
    first.train_step([MicroBatch(0, torch.from_numpy(made[rows.CLIP]), torch.from_numpy(made[rows.LABELS]))], STEPS)
    second.load(*copied(first.state()), 1)
    again = trained(second, recipe, manifest)
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    val = evaluation_rows(source_of(recipe, manifest, "val"), np.arange(8))
    sums = second.evaluate(torch.from_numpy(val[rows.CLIP]), torch.from_numpy(val[rows.LABELS]))
    assert sums[3] == 8


def test_a_device_is_handed_the_same_clips(flow_dataset: str) -> None:
    manifest = load_manifest(flow_dataset)
    recipe = flow_recipe("TSN + TPN (flow)", manifest)
    plan, source = make_plan(recipe, manifest), source_of(recipe, manifest)
    handed = training_rows(dataclasses.replace(source, developed=False), [plan.slot(0, 1)])
    expected = training_rows(source, [plan.slot(0, 1)])[rows.CLIP]
    for bad, count in ((False, 4), (True, 0)):
        block = {**handed, rows.REASON: np.array(["damaged" if bad else ""] * 4)}
        stream = Stream(
            iter([block]), make_schedule(recipe, manifest, 4), first_step=0, rank=0, workers=1, crop_px=32,
            colors=recipe.clip.colors, device="cpu", tell=lambda event: None,
        )  # fmt: skip
        (batch,) = stream.step()
        assert np.array_equal(batch.clips.numpy(), expected[:count])


def test_flow_of_a_dataset_without_it_is_refused(toy_folder: Path, flow_dataset: str) -> None:
    raw, prepared = load_manifest(str(toy_folder)), load_manifest(flow_dataset)
    with pytest.raises(ConfigError, match=r"which this dataset does not have: prepare it with `python jobs/prepare.py"):
        flow_recipe("I3D (flow)", raw)
    assert (raw.has_flow, prepared.has_flow) == (False, True)
    assert prepared.showing("rgb") is prepared
