"""What a recipe and a dataset define: plan, schedule, and whether a run can resume. Runs on the driver."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tpn_ray import checkpoint as checkpoints
from tpn_ray.data.plan import Plan
from tpn_ray.data.schedule import Schedule
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import CheckpointError, ConfigError, difference
from tpn_ray.recipe import Recipe, replace_fields, to_plain, with_defaults
from tpn_ray.training import run_folder
from tpn_ray.training.multigrid import grid_of


def recipe_for(recipe: Recipe, manifest: Manifest) -> Recipe:
    """Return the recipe with the dataset's number of classes. Raises ConfigError if its modality is not there, or if
    videos have several classes and the recipe is for one."""
    manifest.showing(recipe.clip.modality)
    sizes = tuple(len(classes) for classes in manifest.label_sets.values())
    classes = sizes[0] if len(sizes) == 1 else sizes
    return replace_fields(recipe, {"model.classes": classes, "model.multi_label": manifest.multi_label})


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
        balance=loop.class_balance,
        classes=b"" if loop.class_balance == "none" else np.ascontiguousarray(train.labels[:, 0]).tobytes(),
        grid=grid_of(recipe),
    )


def make_schedule(recipe: Recipe, manifest: Manifest, last_step: int) -> Schedule:
    """Return the schedule of everything read up to `last_step`, which ends an epoch."""
    plan = make_plan(recipe, manifest)
    return Schedule(
        # Nothing after a pause is read. The order of what comes before does not depend on the number of epochs.
        plan=dataclasses.replace(plan, epochs=plan.place(last_step)[0]),
        validation=len(manifest.select("val")),
        evaluate_every=recipe.loop.evaluate_every_epochs,
    )


def check_resumable(run_uri: str, recipe: Recipe, manifest: Manifest, extends: str = "") -> int:
    """Return the step from which a run of this name resumes (0: new), and write down what the run is. Raises
    CheckpointError, with the differences, for another recipe or dataset, or if it does not extend the same run."""
    return run_folder.settle(run_uri, _about(recipe, manifest, extends))


def check_unchanged(run_uri: str, recipe: Recipe, manifest: Manifest, extends: str = "") -> int:
    """Do the same as `check_resumable`, and write nothing."""
    return run_folder.compare(run_uri, _about(recipe, manifest, extends))


def _about(recipe: Recipe, manifest: Manifest, extends: str = "") -> dict[str, Any]:
    return {
        "recipe": to_plain(recipe),
        "label_sets": {name: list(classes) for name, classes in manifest.label_sets.items()},
        "dataset_version": manifest.version,
        **({"extends": extends} if extends else {}),
    }


EXTENSIBLE = ("recipe.loop.epochs:", "recipe.optim.")
"""Beginnings of the differences that a run may have from the run that it extends."""


def checkpoint_to_extend(run_uri: str, recipe: Recipe, manifest: Manifest) -> str:
    """Return the last checkpoint of a run, from which a new run goes on with more epochs.

    Raises CheckpointError if there is none, or if more has changed than the number of epochs and the optimization.
    """
    steps = run_folder.committed_steps(run_uri)
    if not steps:
        raise CheckpointError(f"{run_uri} has no checkpoint: give --extend the name or the folder of a run")
    uri = run_folder.checkpoint_uri(run_uri, steps[-1])
    saved = checkpoints.load(uri, parts=())
    before = {"recipe": saved.recipe, "label_sets": saved.label_sets, "dataset_version": saved.dataset_version}
    changed = [
        line.removeprefix("recipe.")
        for line in difference(with_defaults(before), _about(recipe, manifest))
        if not line.startswith(EXTENSIBLE)
    ]
    if changed:
        raise CheckpointError(
            f"{run_uri} can be extended with other --loop.epochs and --optim..., but not with other settings:\n  "
            + "\n  ".join(changed)
        )
    plan = make_plan(recipe, manifest)
    if plan.grid:
        raise ConfigError("a run with --loop.multigrid cannot be extended: its clips follow the number of its epochs")
    if plan.steps <= steps[-1]:
        raise ConfigError(
            f"{run_uri} has trained {steps[-1] / plan.first_step(1):g} epochs, and --loop.epochs {plan.epochs} asks"
            " for no more: it counts from the beginning of the run that is extended"
        )
    return uri
