"""A run in this process, in plain torch, without a cluster: what any disturbed run must end with, bit for bit."""

from __future__ import annotations

import torch

from tpn_ray import checkpoint as checkpoints
from tpn_ray.clips import rows
from tpn_ray.data.tasks import ClipSource, training_rows
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.recipe import Recipe
from tpn_ray.training.multigrid import learning_rate
from tpn_ray.training.run_plan import make_plan
from tpn_ray.training.step import MicroBatch, Training


def undisturbed(recipe: Recipe, manifest: Manifest, *, threads: int = 1) -> Training:
    """All steps of the recipe, which has an ordered reduction; sums inside an operation depend on the threads too."""
    assert recipe.loop.ordered_reduction
    torch.set_num_threads(threads)
    plan = make_plan(recipe, manifest)
    training = Training(recipe.model, recipe.loss, recipe.optim, recipe.loop, "cpu")
    source = ClipSource(manifest=manifest.select("train"), clip=recipe.clip, augment=recipe.augment, seed=0)
    for step in range(plan.steps):
        micro_batches = []
        for number in range(plan.micro_batches(step)):
            made = training_rows(source, [plan.slot(number, 1, step)])
            clips, labels = torch.tensor(made[rows.CLIP]), torch.tensor(made[rows.LABELS])
            micro_batches.append(MicroBatch(number, clips, labels))
        rate = learning_rate(recipe.optim, plan, step, plan.epochs) if plan.grid else None
        training.train_step(micro_batches, plan.steps, plan.micro_batches(step), rate)
    return training


def check_same_bits(training: Training, checkpoint: str) -> None:
    """Weights, BatchNorm's statistics and momenta."""
    saved = checkpoints.load(checkpoint)
    weights = training.model.state_dict()
    assert weights.keys() == saved.weights.keys()
    assert all(torch.equal(tensor, saved.weights[name]) for name, tensor in weights.items())
    ours, theirs = (state["optimizer"]["state"] for state in (training.state()[1], saved.training))
    assert all(torch.equal(ours[p]["momentum_buffer"], theirs[p]["momentum_buffer"]) for p in ours)
