"""Mixup and CutMix: clips of a micro-batch shown through each other, and their classes shared. Runs where the network
runs.

Every draw is a pure function of a seed, which `tpn_ray.training.step` makes from the place of the micro-batch in the
run. A clip's partner is in the same micro-batch, so any number of workers mixes the same clips. Bad videos are left out
before.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tpn_ray.clips.transfer import upload
from tpn_ray.recipe import LossConfig


class Partners(NamedTuple):
    """What clips were mixed with."""

    of: Int[Tensor, " n"]
    """Index of each clip's partner; a clip may be its own."""
    own: Float[Tensor, " n"]
    """Share of the clip's own class, at least a half; the rest is its partner's."""


class MixDraw(NamedTuple):
    """The draws for n clips, as arrays of length n."""

    partners: NDArray[np.int64]
    boxes: NDArray[np.int64]
    """(n, 4): top, bottom, left, right of where the partner is seen."""
    kept: NDArray[np.float64]
    """Weight of the clip's own pixels in there: 0 for CutMix."""
    own: NDArray[np.float64]
    """Share of the clip's own class."""


def draw_mix(config: LossConfig, clips: int, height: int, width: int, seed: int) -> MixDraw:
    """Draw partners and shares. All frames of a clip have the same (Zhang et al., "mixup", ICLR 2018; Yun et al.,
    "CutMix", ICCV 2019).

    A share is folded to at least a half, which makes no difference to random pairs: accuracy in training is then that
    on the class that is seen most. Every clip has a share of its own; with both kinds, half of the clips get each.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, 0]))
    partners = random.permutation(clips)
    cut = random.random(clips) < (0.5 if config.mixup and config.cutmix else bool(config.cutmix))
    shares = np.where(cut, _beta(config.cutmix, clips, random), _beta(config.mixup, clips, random))
    middles = random.random((clips, 2)) * (height, width)
    halves = np.sqrt(1 - shares)[:, None] * (height, width) / 2
    # As published, a box is cut off at the border, and the class gets the share that is left.
    begins = np.round(np.clip(middles - halves, 0, (height, width))).astype(np.int64)
    ends = np.round(np.clip(middles + halves, 0, (height, width))).astype(np.int64)
    whole = np.array([0, height, 0, width])
    boxes = np.where(cut[:, None], np.stack([begins, ends], axis=2).reshape(clips, 4), whole)
    areas = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / (height * width)
    return MixDraw(partners, boxes, np.where(cut, 0.0, shares), np.where(cut, 1 - areas, shares))


def _beta(concentration: float, clips: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Draw shares from a symmetric Beta distribution, folded; a kind that is off draws as many numbers."""
    shares: NDArray[np.float64] = random.beta(concentration or 1.0, concentration or 1.0, clips)
    return np.maximum(shares, 1 - shares)


def mix(
    clips: Float[Tensor, "n c t h w"], config: LossConfig, seed: int
) -> tuple[Float[Tensor, "n c t h w"], Partners | None]:
    """Return the mixed clips, and with what; unchanged clips and None if nothing is to be mixed."""
    if not (config.mixup or config.cutmix):
        return clips, None
    n, height, width = clips.shape[0], clips.shape[3], clips.shape[4]
    draw = draw_mix(config, n, height, width, seed)
    device = str(clips.device)
    table = upload(np.column_stack([draw.partners, draw.boxes, draw.kept, draw.own]).astype(np.float64), device)
    of, own = table[:, 0].long(), table[:, 6].to(clips.dtype)
    down, across = (clips.new_ones(size).cumsum(0) - 1 for size in (height, width))
    top, bottom, left, right = (column[:, None] for column in table[:, 1:5].unbind(dim=1))
    inside = ((down >= top) & (down < bottom))[:, :, None] & ((across >= left) & (across < right))[:, None]
    seen = (inside * (1 - table[:, 5, None, None])).to(clips.dtype)[:, None, None]
    return clips + seen * (clips[of] - clips), Partners(of, own)
