"""Multi-scale TRN (Zhou et al., ECCV 2018): a TSN whose head relates frames to each other. Runs anywhere, torch only.

The head is the one of zhoubolei/TRN-pytorch and of mmaction2, which publishes weights of it on a ResNet-50.
"""

from __future__ import annotations

from functools import partial
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tpn_ray.errors import ConfigError
from tpn_ray.model.backbones.resnet2d import APACHE, MMACTION2, R50, TORCHVISION, TOY, spec, tsn
from tpn_ray.model.backbones.spec import BackboneSpec, Published, Substitutions
from tpn_ray.model.heads import initialise

FRAMES = 8  # of the published networks
MOST_RELATIONS = 3
"""Number of relations of a scale that take part in a step of training, at most."""


class Relation(nn.Module):
    """Scores from the features of several frames in their order: ReLU, linear, ReLU, and linear."""

    def __init__(self, features: int, width: int, classes: int) -> None:
        super().__init__()
        self.mix = nn.Linear(features, width)
        self.linear = nn.Linear(width, classes)

    def forward(self, frames: Float[Tensor, "n r d"]) -> Float[Tensor, "n r k"]:
        scores: Tensor = self.linear(F.relu(self.mix(F.relu(frames))))
        return scores


class RelationHead(nn.Module):
    """Sum of the scores of relations between all frames, all but one, ..., two frames.

    At every scale, training takes three relations at random. The published code does so in evaluation, too; here
    evaluation gives the mean over all such choices, so that scores do not depend on chance.

    The number of frames is part of the weights' shape. The features of longer clips are averaged to it; with a pyramid,
    alpha decides how many there are, for example (1, 1) keeps them all.
    """

    def __init__(
        self, channels: int, classes: int, dropout: float, std: float | None = 0.001, *, width: int = 256
    ) -> None:
        """Build the head; only the frames' layer is drawn with `std`, the others as PyTorch does."""
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.frame = nn.Linear(channels, width)
        self.relations = nn.ModuleList(Relation(scale * width, width, classes) for scale in range(FRAMES, 1, -1))
        if std is not None:
            initialise(self.frame, std)

    def forward(self, features: Float[Tensor, "n c t h w"]) -> Float[Tensor, "n k"]:
        n, c, t = features.shape[:3]
        if t % FRAMES:
            raise ConfigError(
                f"trn relates {FRAMES} frames, and {t} reach its head: give clips of {FRAMES} frames or a multiple of "
                "it, and in a pyramid an alpha that keeps them, such as 1 1"
            )
        means = features.mean(dim=(3, 4)).reshape(n, c, FRAMES, t // FRAMES).mean(dim=3).transpose(1, 2)
        frames = self.frame(self.dropout(means))
        scores = torch.stack([self.at_scale(FRAMES - i, relation, frames) for i, relation in enumerate(self.relations)])
        total = scores.sum(dim=0)
        return total.to(torch.promote_types(total.dtype, torch.float32))  # float32 under autocast; float64 is kept

    def at_scale(self, scale: int, relation: nn.Module, frames: Float[Tensor, "n t d"]) -> Float[Tensor, "n k"]:
        """Return the sum of some relations in training, or what it is on average."""
        choices = torch.tensor([*combinations(range(FRAMES), scale)], device=frames.device)
        taken = min(MOST_RELATIONS, len(choices))
        if self.training:
            choices = choices[torch.randperm(len(choices), device=frames.device)[:taken]]
        scores: Tensor = relation(frames[:, choices].flatten(2))
        return scores.mean(dim=1) * taken


HEAD: Substitutions = (
    (r"^head\.relations\.(\d)\.mix\.", r"consensus.fc_fusion_scales.\1.1."),
    (r"^head\.relations\.(\d)\.linear\.", r"consensus.fc_fusion_scales.\1.3."),
    (r"^head\.frame\.", "new_fc."),
)
TRN_PYTORCH: Substitutions = (*TORCHVISION, (r"^(conv1|bn1|layer<\d>)\.", r"base_model.\1."), *HEAD)

SPECS: dict[str, BackboneSpec] = {
    f"trn_{name}": spec(
        tsn,
        size,
        frames="apart",
        head=partial(RelationHead, width=width),
        head_std=0.001,
        names={"mmaction2": MMACTION2, "resnet2d": TORCHVISION, "trn_pytorch": TRN_PYTORCH},
        licence=f"{APACHE}; BSD-2-Clause (zhoubolei/TRN-pytorch)",
        published=Published(frames=8, top1="31.6 % on Something-Something V1", source="mmaction2"),
        least_frames=FRAMES,
        frames_multiple=FRAMES,
    )
    for name, size, width in (("r50", R50, 256), ("toy", TOY, 32))
}
