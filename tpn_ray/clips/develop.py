"""Converts clips as decoded to augmented clips, a whole micro-batch at once. Runs where the network runs.

The pixels are those of `augment.train_view` and `augment.test_view`, within one level before the color jitter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from tpn_ray.clips import rows
from tpn_ray.clips.augment import LUMA, NO_JITTER
from tpn_ray.clips.notes import FLOW, NOTHING, PLANES, Note, from_array
from tpn_ray.clips.rows import Rows
from tpn_ray.clips.transfer import beside, upload
from tpn_ray.model import pixels

PIXELS_AT_ONCE = 64 * 8 * 256 * 341
"""Most pixels that are developed together: 64 of the published clips, which take about a gigabyte meanwhile."""


def clips_of_block(
    block: Rows, good: NDArray[np.bool_], size_px: int, device: str, colors: int = 3
) -> UInt8[Tensor, "n t h w c"]:
    """Make the clips of the `good` rows on the device, with `colors` values a pixel (2 for flow).

    The block's memory is read-only and stays unchanged.
    """
    return clips_of_blocks([(block, good)], size_px, device, colors)[0]


def clips_of_blocks(
    blocks: Sequence[tuple[Rows, NDArray[np.bool_]]], size_px: int, device: str, colors: int = 3
) -> list[UInt8[Tensor, "n t h w c"]]:
    """Make the clips of the `good` rows of each block, together: on a GPU in few launches, which it works on beside the
    network (`transfer.beside`)."""
    notes = [from_array(block[rows.NOTES][good]) for block, good in blocks]
    frames = max(note.frames for block, _ in blocks for note in from_array(block[rows.NOTES]))

    def make() -> list[Tensor]:
        made = list[Tensor]()
        for part in _portions([sum(map(_pixels, each)) for each in notes]):
            pixels, together = list[NDArray[np.uint8]](), list[Note]()
            for number in part:
                begin = sum(one.size for one in pixels)
                pixels.append(blocks[number][0][rows.PIXELS].reshape(-1))
                together += [note._replace(begin=begin + note.begin) for note in notes[number]]
            if together:
                clips = develop(upload(np.concatenate(pixels), device), together, size_px)
            else:
                clips = torch.zeros(0, frames, size_px, size_px, colors, dtype=torch.uint8, device=device)
            made += torch.split(clips, [len(notes[number]) for number in part])
        return made

    return beside(device, make)


def _portions(pixels: Sequence[int]) -> list[list[int]]:
    """Group neighbors with at most PIXELS_AT_ONCE, or one that has more."""
    portions, total = list[list[int]](), 0
    for number, own in enumerate(pixels):
        if not portions or total + own > PIXELS_AT_ONCE:
            portions.append([])
            total = 0
        portions[-1].append(number)
        total += own
    return portions


def _pixels(note: Note) -> int:
    return _size((note.frames, note.height, note.width))


def develop(stored: UInt8[Tensor, " bytes"], notes: list[Note], size_px: int) -> UInt8[Tensor, "n t h w c"]:
    """Make the clips of `notes`, each of which must have one; all have the same number of frames, all or none flow."""
    if not notes or any(note.kind == NOTHING for note in notes):
        raise ValueError(f"{len(notes)} notes, {sum(note.kind == NOTHING for note in notes)} of them without a clip")
    frames = notes[0].frames
    height = max(note.height + note.height % 2 for note in notes)
    width = max(note.width + note.width % 2 for note in notes)
    todo = _todo(notes, size_px, stored.device)
    # Clips of different sizes are padded to form one batch; the padding has weight 0.
    if notes[0].kind == FLOW:
        padded = stored.new_zeros(len(notes), 2, frames, height, width)
    else:
        luma = stored.new_zeros(len(notes), frames, height, width)
        chroma = stored.new_zeros(2, len(notes), frames, height // 2, width // 2)
        for place, note in enumerate(notes):
            if note.kind == PLANES:
                _place_planes(stored, note, luma[place], chroma[:, place])
        padded = pixels.rgb_from_planes(luma, chroma[0], chroma[1], todo.shares)
    colors = padded.shape[1]
    for place, note in enumerate(notes):
        if note.kind != PLANES:
            part = stored[note.begin : note.begin + colors * frames * note.height * note.width]
            whole = part.view(frames, note.height, note.width, colors).permute(3, 0, 1, 2)
            padded[place, :, :, : note.height, : note.width] = whole
    clips = pixels.crop_and_resize(padded, todo, size_px)
    identity = all(note.jitter == NO_JITTER.matrix and note.grey_share == 0 for note in notes)
    return clips if identity else pixels.apply_jitter(clips, todo)


def _todo(notes: list[Note], size_px: int, device: torch.device) -> pixels.ToDo:
    """Send what the notes say to the device, in one piece."""
    first = [pixels.columns_first(note.crop_height, note.crop_width, size_px) for note in notes]
    order = np.argsort(first, kind="stable")
    columns = [
        np.array([pixels.color_shares(note.matrix, note.full) for note in notes]),
        np.array([(note.top, note.left, note.crop_height, note.crop_width) for note in notes]),
        np.array([note.mirrored for note in notes])[:, None],
        np.stack([order, np.argsort(order)], axis=1),
        np.array([note.jitter for note in notes]).reshape(len(notes), 9),
        np.array([note.grey_share for note in notes])[:, None],
        np.tile(LUMA, (len(notes), 1)),
    ]
    table = upload(np.concatenate(columns, axis=1, dtype=np.float64), str(device))
    shares, crops, mirrored, places, jitter, grey, luma = torch.split(table, [part.shape[1] for part in columns], dim=1)
    return pixels.ToDo(
        shares=shares.int(),
        crops=crops.long(),
        mirrored=mirrored[:, 0].bool(),
        order=places[:, 0].long(),
        back=places[:, 1].long(),
        rows_first=len(first) - sum(first),
        jitter=jitter.view(-1, 3, 3),
        grey_shares=grey[:, 0],
        luma=luma[0],
    )


def _place_planes(stored: Tensor, note: Note, luma: Tensor, chroma: Tensor) -> None:
    begin, shape = note.begin, (note.frames, note.height, note.width)
    luma[:, : note.height, : note.width] = stored[begin : begin + _size(shape)].view(shape)
    begin += _size(shape)
    half = (note.frames, (note.height + 1) // 2, (note.width + 1) // 2)
    for target in chroma:
        target[:, : half[1], : half[2]] = stored[begin : begin + _size(half)].view(half)
        begin += _size(half)


def _size(shape: tuple[int, int, int]) -> int:
    return shape[0] * shape[1] * shape[2]
