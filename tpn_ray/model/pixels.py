"""From stored pixels to network input. Runs where the network runs: pixels stay uint8 until they are on the device.

`rgb_from_planes`, `crop_and_resize`, and `apply_jitter` do to a batch on a device what swscale and `clips.augment` do
to a clip on a CPU, with the same roundings at the same places, so that the pixels are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
"""Mean and standard deviation per channel, R G B, on the scale 0 to 255; all published TPN weights were trained with
them."""


def normalise(
    clips: UInt8[Tensor, "n t h w c"],
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "n c t h w"]:
    """Return (pixel - mean) / std. Memory stays in the order n t h w c, in which the network works."""
    channels = clips.shape[-1]
    if len(mean) != channels or len(std) != channels:
        raise ValueError(f"clips have {channels} channels, mean has {len(mean)} and std {len(std)}")
    shift = torch.tensor(mean, device=clips.device)
    scale = torch.tensor(std, device=clips.device)
    return ((clips.float() - shift) / scale).to(dtype).permute(0, 4, 1, 2, 3)


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
    matrices: Sequence[int],
    full: Sequence[bool],
) -> UInt8[Tensor, "n c t h w"]:
    """Convert 4:2:0 planes of even size to RGB, in swscale's 16-bit arithmetic on x86: chroma serves 2 x 2 pixels."""
    shares = torch.tensor([_shares(m, f) for m, f in zip(matrices, full, strict=True)], device=y.device)
    gain, black, red_of_v, blue_of_u, green_of_u, green_of_v = shares.to(torch.int32).T.view(6, -1, 1, 1, 1)
    light = ((y.int() * 8 - black) * gain) >> 16
    u8, v8 = u.int() * 8 - 1024, v.int() * 8 - 1024
    red, blue = (v8 * red_of_v) >> 16, (u8 * blue_of_u) >> 16
    green = ((u8 * green_of_u) >> 16) + ((v8 * green_of_v) >> 16)
    parts = [(light + _doubled(part)).clamp_(0, 255).to(torch.uint8) for part in (red, green, blue)]
    return torch.stack(parts, dim=1)


def _shares(matrix: int, full: bool) -> tuple[int, int, int, int, int, int]:
    """Return gain and offset of brightness and the four shares of chroma, in 8192ths."""
    gain = 65536 if full else 65536 * 255 // 219
    shares = COLOURS.get(matrix, COLOURS[5])
    red_of_v, blue_of_u, green_of_u, green_of_v = (share * 224 // 255 if full else share for share in shares)
    rounded = [(share * 8192 + 32768) >> 16 for share in (gain, red_of_v, blue_of_u, -green_of_u, -green_of_v)]
    return rounded[0], 0 if full else 128, rounded[1], rounded[2], rounded[3], rounded[4]


def _doubled(half: Int[Tensor, "n t hh hw"]) -> Int[Tensor, "n t h w"]:
    return half.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)


# --- augmentation


def crop_and_resize(
    frames: UInt8[Tensor, "n c t h w"], crops: Int[Tensor, "n 4"], mirrored: Bool[Tensor, " n"], size_px: int
) -> UInt8[Tensor, "n t s s c"]:
    """Crop each clip to (top, left, height, width), resize it antialiased bilinear as Pillow does, and mirror if asked.

    The result is bit for bit Pillow's, in its order: columns come first where that leaves less to do.
    """
    height, width = crops[:, 2], crops[:, 3]
    columns_first = (height > size_px) & (height + size_px > 2 * width)
    small = frames.new_empty(*frames.shape[:3], size_px, size_px)
    for transposed in (False, True):
        chosen = (columns_first == transposed).nonzero()[:, 0]
        if len(chosen) == 0:
            continue
        top, left, high, wide = crops[chosen].to(frames.device).T
        part = frames[chosen.to(frames.device)]
        if transposed:
            made = _shrink(part.mT, (left, wide), (top, high), size_px).mT
        else:
            made = _shrink(part, (top, high), (left, wide), size_px)
        small[chosen.to(frames.device)] = made
    turned = torch.where(mirrored.to(frames.device)[:, None, None, None, None], small.flip(-1), small)
    return turned.permute(0, 2, 3, 4, 1).contiguous()


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


WEIGHT_BITS, HALF_BITS = 22, 11


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
    weights = torch.where((place >= first) & (place < last), weights, 0.0)
    whole: Tensor = (weights * (1 / weights.sum(dim=-1, keepdim=True)) * 2**WEIGHT_BITS + 0.5).floor()
    return whole


def apply_jitter(
    clips: UInt8[Tensor, "n t h w c"], matrices: Float[Tensor, "n 3 3"], grey_shares: Float[Tensor, " n"]
) -> UInt8[Tensor, "n t h w c"]:
    """Compute rgb' = matrix @ rgb + grey_share * (the clip's mean gray), rounded and clipped, as in `augment`."""
    flat = clips.flatten(1, 3)
    luma = torch.tensor([0.299, 0.587, 0.114], device=clips.device, dtype=torch.float64)
    mean_grey = flat.sum(dim=1, dtype=torch.int64).double() @ luma / flat.shape[1]
    shift = (grey_shares.to(clips.device) * mean_grey).float()
    turned = torch.bmm(flat.float(), matrices.to(clips.device).float().mT) + shift[:, None, None]
    return (turned + 0.5).floor_().clamp_(0, 255).to(torch.uint8).view(clips.shape)
