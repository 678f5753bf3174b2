"""The loss, CE + sum of lambda_i CE_i, outside the network (paper, section 3.1). Torch only."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from tpn_ray.errors import ConfigError
from tpn_ray.model.recognizer import Scores, split_label_sets
from tpn_ray.recipe import LossConfig
from tpn_ray.training.mixing import Partners


def total_loss(
    scores: Scores,
    labels: Int[Tensor, "n s"],
    classes: tuple[int, ...],
    config: LossConfig,
    partners: Partners | None = None,
    multi_label: bool = False,
) -> Float[Tensor, ""]:
    """Return the mean loss over the clips: that of the main head, plus the weighted ones of the auxiliary heads."""
    return weighted(head_losses(scores, labels, classes, config, partners, multi_label), config)


def weighted(losses: Sequence[Float[Tensor, ""]], config: LossConfig) -> Float[Tensor, ""]:
    """Return the loss made of those of all heads, the main one first."""
    loss = losses[0]
    for weight, auxiliary in zip(config.lambdas, losses[1:], strict=True):
        loss = loss + weight * auxiliary
    return loss


def head_losses(
    scores: Scores,
    labels: Int[Tensor, "n s"],
    classes: tuple[int, ...],
    config: LossConfig,
    partners: Partners | None = None,
    multi_label: bool = False,
) -> list[Float[Tensor, ""]]:
    """Return the mean loss over the clips of each head, the main one first.

    With several label sets (verb, noun), each head averages over them. Mixed clips count for their own class and for
    that of their partner, by their shares. With `multi_label`, labels are (n, k): 1 for each class that a clip has.
    """
    if len(scores.auxiliary) != len(config.lambdas):
        raise ConfigError(
            f"lambdas={config.lambdas} has {len(config.lambdas)} entries, "
            f"the network has {len(scores.auxiliary)} auxiliary heads"
        )
    heads = (scores.action, *scores.auxiliary)
    if multi_label:
        return [binary_cross_entropy(head, labels, partners) for head in heads]
    return [cross_entropy(head, labels, classes, config.label_smoothing, partners) for head in heads]


def cross_entropy(
    scores: Float[Tensor, "n k"],
    labels: Int[Tensor, "n s"],
    classes: tuple[int, ...],
    smoothing: float = 0.0,
    partners: Partners | None = None,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy over clips and label sets, in float32 whatever the precision of the network."""
    parts = split_label_sets(scores.float(), classes)
    losses = [_cross_entropy(part, labels[:, i], smoothing, partners) for i, part in enumerate(parts)]
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total / len(losses)


def _cross_entropy(
    scores: Float[Tensor, "n k"], labels: Int[Tensor, " n"], smoothing: float, partners: Partners | None
) -> Float[Tensor, ""]:
    if partners is None:
        return F.cross_entropy(scores, labels, label_smoothing=smoothing)
    own, others = (
        F.cross_entropy(scores, wanted, label_smoothing=smoothing, reduction="none")
        for wanted in (labels, labels[partners.of])
    )
    return (partners.own * own + (1 - partners.own) * others).mean()


def binary_cross_entropy(
    scores: Float[Tensor, "n k"], labels: Int[Tensor, "n k"], partners: Partners | None = None
) -> Float[Tensor, ""]:
    """Return the mean over clips and classes of the cross-entropy of each class by itself, in float32.

    The paper has no dataset with several classes a video; the mean over classes is mmaction2's and PySlowFast's.
    """
    wanted = labels.float()
    if partners is not None:
        own = partners.own[:, None].float()
        wanted = own * wanted + (1 - own) * wanted[partners.of]
    return F.binary_cross_entropy_with_logits(scores.float(), wanted)
