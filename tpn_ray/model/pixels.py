"""From stored pixels to network input. Runs where the network runs: pixels stay uint8 until they are on the device.

`rgb_from_planes`, `crop_and_resize`, and `apply_jitter` do to a batch on a device what swscale and `clips.augment` do
to a clip on a CPU, with the same roundings at the same places, so that the pixels are the same.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

FLOW_MEAN = FLOW_STD = (128.0, 128.0)
"""Of x and y of flow: no flow is 0, and the bound is 1 (mmaction2's TSN and I3D; DeepMind's I3D scales alike)."""

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
"""Mean and standard deviation per channel, R G B, on the scale 0 to 255; all published TPN weights were trained with
them."""


class Normalise(nn.Module):
    """(pixel - mean) / std per channel. Memory stays in the order n t h w c, in which the network works."""

    shift: Tensor
    scale: Tensor

    def __init__(
        self, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD, stack: int = 1
    ) -> None:
        """Take `stack` consecutive pictures as the channels of one frame: x1 y1 x2 y2 ... of flow."""
        super().__init__()
        self.stack = stack
        # Buffers, because a constant that is sent to a GPU at every call waits for all work queued there.
        self.register_buffer("shift", torch.tensor(mean), persistent=False)
        self.register_buffer("scale", torch.tensor(std), persistent=False)

    def forward(self, clips: UInt8[Tensor, "n t h w c"]) -> Float[Tensor, "n k s h w"]:
        if clips.shape[-1] != len(self.shift):
            raise ValueError(f"clips have {clips.shape[-1]} channels, the mean has {len(self.shift)}")
        values = (clips.float() - self.shift) / self.scale
        if self.stack > 1:
            n, pictures, *shape = values.shape
            values = values.view(n, pictures // self.stack, self.stack, *shape).permute(0, 1, 3, 4, 2, 5).flatten(4)
        return values.permute(0, 4, 1, 2, 3)


class ToDo(NamedTuple):
    """What remains to be done to a batch of clips, on their device."""

    shares: Int[Tensor, "n 6"]
    """`color_shares` of each clip."""
    crops: Int[Tensor, "n 4"]
    """Top, left, height, and width of each crop."""
    mirrored: Bool[Tensor, " n"]
    order: Int[Tensor, " n"]
    """The clips whose rows are resized first, then those whose columns are."""
    back: Int[Tensor, " n"]
    """The inverse of `order`."""
    rows_first: int
    """Number of clips whose rows are resized first."""
    jitter: Float[Tensor, "n 3 3"]
    grey_shares: Float[Tensor, " n"]
    luma: Float[Tensor, "3"]
    """Share of each color in gray."""


# --- planes -> RGB

COLOURS = {
    1: (117489, 138438, 13975, 34925),
    4: (104448, 132798, 24759, 53109),
    5: (104597, 132201, 25675, 53279),
    7: (117579, 136230, 16907, 35559),
    9: (110013, 140363, 12277, 42626),
}
"""Color matrix (ISO/IEC 23091-2: 1 is BT.709, 5 is BT.601, 9 is BT.2020) -> how much of v is added to red, of u to
blue, and of u and v is subtracted from green, in 65536ths and for a limited range, in which chroma spans 224 levels."""


def rgb_from_planes(
    y: UInt8[Tensor, "n t h w"],
    u: UInt8[Tensor, "n t hh hw"],
    v: UInt8[Tensor, "n t hh hw"],
    shares: Int[Tensor, "n 6"],
) -> UInt8[Tensor, "n c t h w"]:
    """Convert 4:2:0 planes of even size to RGB, in swscale's 16-bit arithmetic on x86: chroma serves 2 x 2 pixels."""
    gain, black, red_of_v, blue_of_u, green_of_u, green_of_v = shares.T.reshape(6, -1, 1, 1, 1)
    light = ((y.int() * 8 - black) * gain) >> 16
    u8, v8 = u.int() * 8 - 1024, v.int() * 8 - 1024
    red, blue = (v8 * red_of_v) >> 16, (u8 * blue_of_u) >> 16
    green = ((u8 * green_of_u) >> 16) + ((v8 * green_of_v) >> 16)
    parts = [(light + _doubled(part)).clamp_(0, 255).to(torch.uint8) for part in (red, green, blue)]
    return torch.stack(parts, dim=1)


def color_shares(matrix: int, full: bool) -> tuple[int, int, int, int, int, int]:
    """Return gain and offset of brightness and the four shares of chroma, in 8192ths."""
    gain = 65536 if full else 65536 * 255 // 219
    shares = COLOURS.get(matrix, COLOURS[5])
    red_of_v, blue_of_u, green_of_u, green_of_v = (share * 224 // 255 if full else share for share in shares)
    rounded = [(share * 8192 + 32768) >> 16 for share in (gain, red_of_v, blue_of_u, -green_of_u, -green_of_v)]
    return rounded[0], 0 if full else 128, rounded[1], rounded[2], rounded[3], rounded[4]


def _doubled(half: Int[Tensor, "n t hh hw"]) -> Int[Tensor, "n t h w"]:
    return half.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)


# --- augmentation


def columns_first(height: int, width: int, size_px: int) -> bool:
    """Return whether Pillow resizes the columns of a crop first, because that leaves less to do."""
    return height > size_px and height + size_px > 2 * width


def crop_and_resize(frames: UInt8[Tensor, "n c t h w"], todo: ToDo, size_px: int) -> UInt8[Tensor, "n t s s c"]:
    """Crop each clip, resize it antialiased bilinear as Pillow does, and mirror it if asked.

    The result is bit for bit Pillow's, in its order.
    """
    made = []
    for transposed, chosen in enumerate((todo.order[: todo.rows_first], todo.order[todo.rows_first :])):
        if len(chosen) == 0:
            continue
        top, left, high, wide = todo.crops[chosen].T
        part = frames[chosen]
        if transposed:
            made.append(_shrink(part.mT, (left, wide), (top, high), size_px).mT)
        else:
            made.append(_shrink(part, (top, high), (left, wide), size_px))
    small = torch.cat(made)[todo.back]
    turned = torch.where(todo.mirrored[:, None, None, None, None], mirrored(small), small)
    return turned.permute(0, 2, 3, 4, 1).contiguous()


def mirrored(pixels: UInt8[Tensor, "n c *t h w"]) -> UInt8[Tensor, "n c *t h w"]:
    """Mirror left to right; of flow, which has two channels, x also becomes its opposite, as in `augment`."""
    turned = pixels.flip(-1)
    if pixels.shape[1] == 2:
        turned[:, 0] = 255 - turned[:, 0]
    return turned


def _shrink(
    frames: UInt8[Tensor, "n c t h w"], down: tuple[Tensor, Tensor], across: tuple[Tensor, Tensor], size_px: int
) -> UInt8[Tensor, "n c t s s"]:
    """Resize rows, then columns, as products with integer weights, rounding to whole levels in between."""
    clips, channels, count, height, width = frames.shape
    rows = frames.reshape(clips, channels * count * height, width).float()
    narrow = _levels(*(torch.bmm(rows, part.mT) for part in _halves(_weights(*across, width, size_px))))
    columns = narrow.view(clips, channels * count, height, size_px).float()
    small = _levels(*(torch.matmul(part[:, None], columns) for part in _halves(_weights(*down, height, size_px))))
    return small.view(clips, channels, count, size_px, size_px)


WEIGHT_BITS, HALF_BITS, EXACT_BITS = 22, 11, 40


def _halves(weights: Float[Tensor, "n s p"]) -> tuple[Float[Tensor, "n s p"], Float[Tensor, "n s p"]]:
    """Split integer weights in two, small enough for exact float32 and even TF32 products with pixels."""
    high = (weights / 2**HALF_BITS).floor()
    return high.float(), (weights - high * 2**HALF_BITS).float()


def _levels(high: Float[Tensor, "*s"], low: Float[Tensor, "*s"]) -> UInt8[Tensor, "*s"]:
    total = high.int() * 2**HALF_BITS + low.int()
    levels: Tensor = ((total + (1 << WEIGHT_BITS - 1)) >> WEIGHT_BITS).clamp_(0, 255).to(torch.uint8)
    return levels


def _weights(begin: Int[Tensor, " n"], length: Int[Tensor, " n"], pixels: int, size_px: int) -> Float[Tensor, "n s p"]:
    """Return how much of each of `pixels` is in each of size_px, in 2**-22ths: a triangle, cut off at the crop."""
    length = length.double()[:, None, None]
    step = length / size_px
    reach = step.clamp(min=1.0)
    centre = (torch.arange(size_px, device=begin.device, dtype=torch.float64)[:, None] + 0.5) * step
    place = torch.arange(pixels, device=begin.device, dtype=torch.float64) - begin[:, None, None]
    first = (centre - reach + 0.5).trunc().clamp(min=0.0)
    last = torch.minimum((centre + reach + 0.5).trunc(), length)
    weights = (1 - ((place - centre + 0.5) * (1 / reach)).abs()).clamp(min=0.0)
    # Whole numbers, whose sum is exact in any order: it must not depend on how far a clip is padded beside others.
    weights = (torch.where((place >= first) & (place < last), weights, 0.0) * 2**EXACT_BITS).floor()
    whole: Tensor = (weights * (1 / weights.sum(dim=-1, keepdim=True)) * 2**WEIGHT_BITS + 0.5).floor()
    return whole


def apply_jitter(clips: UInt8[Tensor, "n t h w c"], todo: ToDo) -> UInt8[Tensor, "n t h w c"]:
    """Compute rgb' = matrix @ rgb + grey_share * (the clip's mean gray), rounded and clipped, as in `augment`."""
    flat = clips.flatten(1, 3)
    mean_grey = _weighed(flat.sum(dim=1, dtype=torch.int64).double(), todo.luma) / flat.shape[1]
    shift = (todo.grey_shares * mean_grey).float()
    matrix, colors = todo.jitter.float(), flat.float()
    turned = torch.stack([_weighed(colors, matrix[:, None, i]) for i in range(3)], dim=-1) + shift[:, None, None]
    return (turned + 0.5).floor_().clamp_(0, 255).to(torch.uint8).view(clips.shape)


def _weighed(colors: Float[Tensor, "*n 3"], shares: Float[Tensor, "*#n 3"]) -> Float[Tensor, "*n"]:
    """Sum the colors with these shares, in one order: a product of matrices would choose one by the number of clips."""
    red, green, blue = (color * share for color, share in zip(colors.unbind(-1), shares.unbind(-1), strict=True))
    return red + green + blue
