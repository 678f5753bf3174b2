"""I3D, the inflated ResNet, alone and with non-local blocks (mmaction2's ResNet3d). Runs anywhere, torch only.

Clips are reduced to an eighth of their frames before res3: by the stem, by the pool after it, and by a pool after res2.
Then time is kept. All blocks of res2, every second one of res3 and res4, and the middle one of res5 look along time.
Fresh residual branches start at zero, which is mmaction2's default; its configs set another start, but then read
weights from ImageNet instead.

Non-local blocks (Wang et al., "Non-local Neural Networks", section 3) follow two blocks of res3 and three of res4.
mmaction2 publishes two placements. `nonlocal_*` has the one of its SlowOnly and TSM configs, after the first of every
two blocks; in a ResNet-101, which it does not publish, that makes twelve blocks in res4. `i3d_r50_nl_*` has the one of
its I3D configs and of the paper's code, after the second of every two blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tpn_ray.model.backbones.resnet2d import APACHE, R50, R101, TORCHVISION, TOY, Size
from tpn_ray.model.backbones.resnet3d import NAMES_3D, Design, Place, ResNet3d, bottleneck
from tpn_ray.model.backbones.spec import BackboneSpec, Published, Substitutions
from tpn_ray.model.frames import per_frame
from tpn_ray.model.layers import ConvNorm3d, conv3d

Affinity = Literal["embedded_gaussian", "gaussian", "dot_product"]
"""How a non-local block weighs positions.

embedded_gaussian  softmax of the products of embedded features
gaussian           softmax of the products of the features themselves
dot_product        products of embedded features, divided by the number of positions
"""

LEAST_FRAMES = 5  # of which the stem and the pools leave one


class NonLocal(nn.Module):
    """Adds to every position a weighted mean over the positions of the whole clip, which are thinned by a max-pool.

    The softmax is not scaled, as in mmaction2's configs and unlike in the paper's code. The block starts as the
    identity, and its embeddings with a standard deviation of 0.01, as in both.
    """

    def __init__(self, channels: int, affinity: Affinity) -> None:
        super().__init__()
        self.affinity = affinity
        inner = channels // 2
        self.value = embedding(channels, inner)
        self.query = embedding(channels, inner) if affinity != "gaussian" else None
        self.key = embedding(channels, inner) if affinity != "gaussian" else None
        self.out = ConvNorm3d(inner, channels, (1, 1, 1), relu=False)
        assert self.out.norm is not None
        nn.init.zeros_(self.out.norm.weight)

    def forward(self, clips: Float[Tensor, "n c t h w"]) -> Float[Tensor, "n c t h w"]:
        queries = clips if self.query is None else per_frame(self.query, clips)
        keys = thin(clips if self.key is None else per_frame(self.key, clips))
        values = thin(per_frame(self.value, clips))
        weights = queries.flatten(2).transpose(1, 2) @ keys.flatten(2)  # n (t h w) positions
        weights = weights / weights.shape[-1] if self.affinity == "dot_product" else weights.softmax(dim=-1)
        means = weights @ values.flatten(2).transpose(1, 2)
        n, _, t, h, w = clips.shape
        added: Tensor = self.out(means.transpose(1, 2).view(n, -1, t, h, w))
        return clips + added


def embedding(inputs: int, outputs: int) -> nn.Module:
    """Build a 1x1x1 convolution with a bias."""
    convolution = conv3d(inputs, outputs, (1, 1, 1), bias=True)
    convolution.fresh_std = 0.01  # type: ignore[assignment]  # for `Backbone.initialise`
    return convolution


def thin(clips: Float[Tensor, "n c t h w"]) -> Float[Tensor, "n c t i j"]:
    """Max-pool 2x2 pixels of every frame."""
    return per_frame(lambda frames: F.max_pool2d(frames, 2), clips)


def nowhere(place: Place) -> bool:
    """Return that no non-local block follows."""
    return False


def first_of_two(place: Place) -> bool:
    """Return whether a non-local block of `nonlocal_*` follows."""
    return place.stage in (3, 4) and place.block % 2 == 0


def second_of_two(place: Place) -> bool:
    """Return whether a non-local block of `i3d_r50_nl_*` follows."""
    return place.stage in (3, 4) and place.block % 2 == 1


def design(size: Size) -> Design:
    """Return the numbers of an I3D."""
    return Design(size=size, stem_stride=2, pool=2, halve=True, zero_residual=True)


def i3d(
    size: Size, top: int, affinity: Affinity = "embedded_gaussian", attends: Callable[[Place], bool] = nowhere
) -> ResNet3d:
    """Build an I3D up to stage res`top`, with non-local blocks after the blocks that `attends` says."""

    def block(place: Place) -> nn.Module:
        looks = place.block == 1 if place.stage == 5 else place.stage == 2 or place.block % 2 == 0
        attention = NonLocal(place.outputs, affinity) if attends(place) else None
        return bottleneck(place, convolve_time=looks, attention=attention)

    stem = ConvNorm3d(3, size.width, (5, 7, 7), stride=(2, 2, 2))
    return ResNet3d(design(size), top, stem, block)


ATTENTION: Substitutions = (
    (r"\.attention\.query\.", ".non_local_block.theta.conv."),
    (r"\.attention\.key\.", ".non_local_block.phi.0.conv."),
    (r"\.attention\.value\.", ".non_local_block.g.0.conv."),
    (r"\.attention\.out\.", ".non_local_block.conv_out."),
)
"""mmaction2's names for the layers of a non-local block."""


def spec(
    size: Size, affinity: Affinity = "embedded_gaussian", attends: Callable[[Place], bool] = nowhere, top1: str = ""
) -> BackboneSpec:
    """Return the entry of an I3D."""
    return BackboneSpec(
        build=partial(i3d, size, affinity=affinity, attends=attends),
        stages=design(size).stages(),
        frames="convolve",
        sampling="clip",
        names={"mmaction2": (*ATTENTION, *NAMES_3D), "resnet2d": ((r"\.branch\.", "."), *TORCHVISION)},
        added=r"\.attention\.",
        licence=APACHE,
        published=Published(frames=32, stride_frames=2, top1=top1, source="mmaction2"),
        least_frames=LEAST_FRAMES,
        least_px=1 if attends is nowhere else 32,  # 2 pixels of res4, for the pool
    )


SIZES = {"r50": R50, "r101": R101, "toy": TOY}
AFFINITIES: dict[Affinity, str] = {
    "dot_product": "73.9 % on Kinetics-400",
    "embedded_gaussian": "74.7 % on Kinetics-400",
    "gaussian": "73.4 % on Kinetics-400",
}
I3D_PUBLISHED = {"r50": "73.3 % on Kinetics-400"}
SPECS: dict[str, BackboneSpec] = {
    **{f"i3d_{name}": spec(size, top1=I3D_PUBLISHED.get(name, "")) for name, size in SIZES.items()},
    **{f"nonlocal_{name}": spec(size, attends=first_of_two) for name, size in SIZES.items()},
    **{f"i3d_r50_nl_{affinity}": spec(R50, affinity, second_of_two, top1) for affinity, top1 in AFFINITIES.items()},
}
