"""Scores of the validation videos while a run trains, over all workers. Runs on every training worker.

With one class a video, sums are enough. mAP needs the scores of all videos at once: they are gathered.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from tpn_ray.errors import TrainingError
from tpn_ray.metrics import mean_average_precision
from tpn_ray.score import MAP, TOP1
from tpn_ray.training.step import MicroBatch, Training


def evaluate(training: Training, batches: Iterable[MicroBatch]) -> dict[str, float]:
    """Score this worker's share of the videos, and return the scores of all. All workers must call it.

    Returns val_loss and val_videos, with val_top1 and val_top5, or with val_map where videos have several classes.
    Raises TrainingError if no video could be used.
    """
    usable = (batch for batch in batches if len(batch.labels))
    return _ranked(training, usable) if training.multi_label else _counted(training, usable)


def _counted(training: Training, batches: Iterable[MicroBatch]) -> dict[str, float]:
    sums = torch.zeros(4, dtype=torch.float64, device=training.device)
    for batch in batches:
        sums += training.evaluate(batch.clips, batch.labels)
    if training.workers > 1:
        dist.all_reduce(sums)
    loss, first, five, videos = sums.tolist()
    if videos == 0:
        raise TrainingError("no validation video could be used")
    return {"val_loss": loss / videos, TOP1: first / videos, "val_top5": five / videos, "val_videos": videos}


def _ranked(training: Training, batches: Iterable[MicroBatch]) -> dict[str, float]:
    own = [(training.score(batch.clips).cpu(), batch.labels.cpu()) for batch in batches]
    gathered: list[list[tuple[Tensor, Tensor]]] = [own]
    if training.workers > 1:
        gathered = [[] for _ in range(training.workers)]
        dist.all_gather_object(gathered, own)
    scored = [one for part in gathered for one in part]
    if not scored:
        raise TrainingError("no validation video could be used")
    scores, labels = (torch.cat(parts) for parts in zip(*scored, strict=True))
    loss = F.binary_cross_entropy_with_logits(scores.double(), labels.double())
    mean = mean_average_precision(torch.sigmoid(scores).numpy(), labels.numpy().astype(np.bool_))
    if mean != mean:
        raise TrainingError("no validation video that could be used has a class: mAP needs one")
    return {"val_loss": loss.item(), MAP: mean, "val_videos": float(len(labels))}
