"""The loss, CE + sum of lambda_i CE_i, outside the network (paper, section 3.1). Torch only."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from tpn_ray.errors import ConfigError
from tpn_ray.model.recognizer import Scores, split_label_sets
from tpn_ray.recipe import LossConfig


def total_loss(
    scores: Scores, labels: Int[Tensor, "n s"], classes: tuple[int, ...], config: LossConfig
) -> Float[Tensor, ""]:
    """Return the mean loss over the clips. With several label sets (verb, noun), each head averages over them."""
    if len(scores.auxiliary) != len(config.lambdas):
        raise ConfigError(
            f"lambdas={config.lambdas} has {len(config.lambdas)} entries, "
            f"the network has {len(scores.auxiliary)} auxiliary heads"
        )
    loss = cross_entropy(scores.action, labels, classes, config.label_smoothing)
    for weight, auxiliary in zip(config.lambdas, scores.auxiliary, strict=True):
        loss = loss + weight * cross_entropy(auxiliary, labels, classes, config.label_smoothing)
    return loss


def cross_entropy(
    scores: Float[Tensor, "n k"], labels: Int[Tensor, "n s"], classes: tuple[int, ...], smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy over clips and label sets, in float32 whatever the precision of the network."""
    parts = split_label_sets(scores.float(), classes)
    losses = [F.cross_entropy(part, labels[:, i], label_smoothing=smoothing) for i, part in enumerate(parts)]
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total / len(losses)
