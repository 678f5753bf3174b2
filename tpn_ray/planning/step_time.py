"""Timing of a training step and of scoring a micro-batch. Plain torch; runs in a Ray task or anywhere."""

from __future__ import annotations

import dataclasses
import time

import torch

from tpn_ray.recipe import Recipe
from tpn_ray.training.step import MicroBatch, Training


def rehearse(recipe: Recipe, device: str) -> tuple[Training, MicroBatch]:
    """Set up one worker's training with single-micro-batch steps, and make such a micro-batch of noise."""
    clips, side_px = recipe.loop.micro_batch_clips, recipe.augment.crop_px
    loop = dataclasses.replace(recipe.loop, batch_clips=clips, sync_batch_norm=1)
    training = Training(recipe.model, recipe.loss, recipe.optim, loop, device)
    shape = clips, recipe.clip.pictures, side_px, side_px, recipe.clip.colors
    pixels = torch.randint(256, shape, dtype=torch.uint8, device=device)
    labels = torch.zeros(clips, len(training.classes), dtype=torch.long, device=device)
    return training, MicroBatch(0, pixels, labels)


def time_training(training: Training, batch: MicroBatch) -> float:
    """Return the seconds that one step takes: forward, loss, backward, and weight update."""
    begin = _now(training.device)
    training.train_step([batch], steps=1000)
    return _now(training.device) - begin


def time_scoring(training: Training, batch: MicroBatch) -> float:
    """Return the seconds that scoring the clips takes, as in an evaluation."""
    begin = _now(training.device)
    training.evaluate(batch.clips, batch.labels)
    return _now(training.device) - begin


def _now(device: str) -> float:
    """Return the time once the device has finished its pending work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
