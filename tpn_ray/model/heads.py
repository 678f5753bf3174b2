"""From features to scores: the classification head and the auxiliary heads. Runs anywhere, torch only."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tpn_ray.model.frames import per_frame
from tpn_ray.model.layers import ConvNorm, conv

HEAD_STD = 0.01
"""Standard deviation of fresh linear layers in most heads of mmaction2 and PySlowFast, and in the official TPN's."""


class ClassificationHead(nn.Module):
    """Mean over time and space, a hidden layer with ReLU in some networks, dropout, and one linear layer."""

    def __init__(
        self, channels: int, classes: int, dropout: float, std: float | None = HEAD_STD, *, hidden: int = 0
    ) -> None:
        """Build the head.

        `std` is the standard deviation of its weights, None for PyTorch's default; `hidden` is the width of the hidden
        layer (X3D's, which has no bias), 0 for none.
        """
        super().__init__()
        self.hidden: nn.Linear | None = None
        if hidden:
            self.hidden = nn.Linear(channels, hidden, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden or channels, classes)
        if std is not None:
            initialise(self, std)

    def forward(self, features: Float[Tensor, "n c t h w"]) -> Float[Tensor, "n k"]:
        # mean(), because AdaptiveAvgPool3d's backward on CUDA is not deterministic
        means = features.mean(dim=(2, 3, 4))
        if self.hidden is not None:
            means = F.relu(self.hidden(means))
        scores: Tensor = self.linear(self.dropout(means))
        return scores.to(torch.promote_types(scores.dtype, torch.float32))  # float32 under autocast; float64 is kept


def initialise(head: nn.Module, std: float) -> None:
    """Draw the weights of linear layers from a normal distribution, and set their biases to zero."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class AuxiliaryHead(nn.Module):
    """Supervision for a level below the top: a 1x3x3 convolution of stride 2 that doubles the channels, then a head.

    The paper says only that each such level has one; the form is the published code's, which has one on res4 alone. It
    shares nothing with the spatial modulation of the same shape.
    """

    def __init__(self, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.deepen = ConvNorm(conv(channels, 2 * channels, 3, stride=2))
        self.head = ClassificationHead(2 * channels, classes, dropout)
        nn.init.xavier_uniform_(self.deepen.conv.weight)

    def forward(self, features: Float[Tensor, "n c t h w"]) -> Float[Tensor, "n k"]:
        scores: Tensor = self.head(per_frame(self.deepen, features))
        return scores
