"""The clips that the network sees in training, as pictures, in the order of the plan. Runs anywhere, without Ray."""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from tpn_ray.clips import rows
from tpn_ray.data.plan import Plan, PlannedMicroBatch
from tpn_ray.data.tasks import ClipSource, training_rows
from tpn_ray.errors import ConfigError
from tpn_ray.recipe import LossConfig
from tpn_ray.training.mixing import mix
from tpn_ray.training.step import random_seed
from tpn_ray.training.stream import changed_after_decoding

Shown = tuple[str, NDArray[np.uint8]]
"""Caption, and frames (t, h, w, c)."""


def training_clips(source: ClipSource, plan: Plan, loss: LossConfig, epoch: int, count: int) -> list[Shown]:
    """Return the first clips of an epoch: cropped, mirrored, color-jittered, changed by RandAugment, and mixed with
    others of their micro-batch. `source` has the training videos, and `plan` is theirs.

    Raises ConfigError for an epoch that the plan does not have.
    """
    if not 0 <= epoch < plan.epochs:
        raise ConfigError(f"epoch={epoch} must be from 0 to {plan.epochs - 1}: the recipe has {plan.epochs} epochs")
    first = plan.first_step(epoch)
    slots = (plan.slot(place, 1, first) for place in range(plan.slots(1, first, plan.first_step(epoch + 1))))
    return list(islice((clip for slot in slots for clip in _micro_batch(source, slot, loss)), count))


def _micro_batch(source: ClipSource, slot: PlannedMicroBatch, loss: LossConfig) -> list[Shown]:
    made = training_rows(source, [slot])
    good = made[rows.REASON] == ""
    clips = changed_after_decoding(
        torch.from_numpy(made[rows.CLIP][good]), made, source.augment, source.seed, slot.epoch
    )
    # Training mixes normalized pixels, which gives the same pictures: normalizing is linear.
    seed = random_seed(source.seed, slot.step, slot.number)
    mixed, partners = mix(clips.permute(0, 4, 1, 2, 3).float(), loss, seed)
    seen = iter(mixed.permute(0, 2, 3, 4, 1).round().to(torch.uint8).numpy())
    samples = slot.samples[good]
    others = [""] * len(samples)
    if partners is not None:
        pairs = zip(partners.own.tolist(), samples[partners.of.numpy()].tolist(), strict=True)
        others = [f" {own:.0%} + {_classes(source, other)} {1 - own:.0%}" for own, other in pairs]
    said = iter(others)
    return [
        (
            f"{_classes(source, sample)}{'' if reason else next(said)}   {source.manifest.ids[sample]}   {reason}",
            clip if reason else next(seen),
        )
        for sample, reason, clip in zip(slot.samples.tolist(), made[rows.REASON].tolist(), made[rows.CLIP], strict=True)
    ]


def _classes(source: ClipSource, sample: int) -> str:
    return ", ".join(source.manifest.classes_of(sample))
