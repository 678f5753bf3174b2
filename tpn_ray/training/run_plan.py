"""What a recipe and a dataset define: plan, schedule, and whether a run can resume. Runs on the driver."""

from __future__ import annotations

import dataclasses
from typing import Any

from tpn_ray.data.plan import Plan
from tpn_ray.data.schedule import Schedule
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.recipe import Recipe, replace_fields, to_plain
from tpn_ray.training import run_folder


def recipe_for(recipe: Recipe, manifest: Manifest) -> Recipe:
    """Return the recipe with the dataset's number of classes."""
    sizes = tuple(len(classes) for classes in manifest.label_sets.values())
    return replace_fields(recipe, {"model.classes": sizes[0] if len(sizes) == 1 else sizes})


def make_plan(recipe: Recipe, manifest: Manifest) -> Plan:
    """Return the plan of the training split."""
    loop, train = recipe.loop, manifest.select("train")
    return Plan(
        samples=len(train),
        groups=train.group_sizes,
        seed=loop.seed,
        epochs=loop.epochs,
        batch_clips=loop.batch_clips,
        micro_batch_clips=loop.micro_batch_clips,
        clips_per_video=recipe.clip.clips_per_video,
    )


def make_schedule(recipe: Recipe, manifest: Manifest, last_step: int) -> Schedule:
    """Return the schedule of everything read up to `last_step`, which ends an epoch."""
    plan = make_plan(recipe, manifest)
    return Schedule(
        # Nothing after a pause is read. The order of what comes before does not depend on the number of epochs.
        plan=dataclasses.replace(plan, epochs=last_step // plan.steps_per_epoch),
        validation=len(manifest.select("val")),
        evaluate_every=recipe.loop.evaluate_every_epochs * plan.steps_per_epoch,
    )


def check_resumable(run_uri: str, recipe: Recipe, manifest: Manifest) -> int:
    """Return the step from which a run of this name resumes (0: new), and write down what the run is. Raises
    CheckpointError, with the differences, for another recipe or dataset."""
    return run_folder.settle(run_uri, _about(recipe, manifest))


def check_unchanged(run_uri: str, recipe: Recipe, manifest: Manifest) -> int:
    """Do the same as `check_resumable`, and write nothing."""
    return run_folder.compare(run_uri, _about(recipe, manifest))


def _about(recipe: Recipe, manifest: Manifest) -> dict[str, Any]:
    return {
        "recipe": to_plain(recipe),
        "label_sets": {name: list(classes) for name, classes in manifest.label_sets.items()},
        "dataset_version": manifest.version,
    }
