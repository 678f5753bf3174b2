"""Clips as decoded, for a device to develop (`develop.py`), and how a block carries them. Runs on Ray Data workers.

Nothing is converted, resized, or colored here: planes are cut to what the clip needs and handed over, with a note on
what remains to be done. Videos without plain planes are handed over as RGB, and flow as x and y.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tpn_ray.clips import augment, rows
from tpn_ray.clips.augment import NO_JITTER, AugmentConfig, CropDraw, JitterDraw
from tpn_ray.clips.notes import FLOW, NO_CLIP, PLANES, RGB, Note, to_array
from tpn_ray.videos.decode import Shrink, Video
from tpn_ray.videos.planes import Box, Cut, Planes

Indices = NDArray[np.int64]
Parts = list[NDArray[np.uint8]]
"""A clip's planes, or its pixels alone."""


def training_clips(
    video: Video, clips: Sequence[Indices], config: AugmentConfig, randoms: Sequence[np.random.Generator]
) -> list[tuple[Parts, Note]]:
    """Make clips of one video in one pass. The draws are those of `augment.train_view`, in the same order."""
    crops: dict[int, CropDraw] = {}

    def cut_of(place: int) -> Cut:
        def cut(height: int, width: int) -> Box:
            crops[place] = augment.draw_crop(config, height, width, randoms[place])
            return _even(crops[place], height, width)

        return cut

    planes = video.clip_planes(clips, [cut_of(place) for place in range(len(clips))])
    made = []
    if planes is None:

        def shrink_of(place: int) -> Shrink:
            def shrink(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
                if place not in crops:
                    crops[place] = augment.draw_crop(config, frame.shape[0], frame.shape[1], randoms[place])
                return _cut_out(frame, crops[place])

            return shrink

        frames = video.clip_frames(clips, [shrink_of(place) for place in range(len(clips))])
    for place, random in enumerate(randoms):
        if planes is not None:
            parts, note = _planes(planes[place], crops[place])
        else:
            parts, note = _pixels(frames[place], crops[place].mirrored)
        made.append((parts, _coloured(note, augment.draw_jitter(config, random))))
    return made


def centre_clip(video: Video, indices: Indices, config: AugmentConfig) -> tuple[Parts, Note]:
    """Make the clip of `augment.test_view`. A video that is not stored in the test size is resized here."""
    square = CropDraw(0, 0, 0, 0)

    def cut(height: int, width: int) -> Box | None:
        nonlocal square
        top, left, side = augment.view_square(height, width, config, "centre")
        square = CropDraw(left, top, side, side)
        fits = augment.test_shape(height, width, config) == (height, width)
        return _even(square, height, width) if fits else None

    planes = video.planes(indices, cut)
    if planes is not None:
        return _planes(planes, square)
    return _pixels(video.frames(indices, lambda frame: augment.test_view(frame[None], config)[0]), mirrored=False)


def columns(
    made: Sequence[tuple[Parts, Note] | None], frames: int, together: int
) -> dict[str, NDArray[np.uint8 | np.float64]]:
    """Build the PIXELS and NOTES columns of a block; None marks a place without a clip.

    The pixels of each group of `together` neighbors fill exactly the rows of that group, whatever the clips' sizes.
    """
    groups = [made[at : at + together] for at in range(0, len(made), together)]
    sizes = [sum(part.size for one in group if one for part in one[0]) for group in groups]
    row_bytes = max(1, -(-max(sizes) // together))
    pixels, notes = np.empty((len(groups), together * row_bytes), dtype=np.uint8), list[Note]()
    for target, group in zip(pixels, groups, strict=True):
        begin = 0
        for one in group:
            parts, note = one or ([], NO_CLIP._replace(frames=frames))
            notes.append(note._replace(begin=begin))
            for part in parts:
                target[begin : begin + part.size] = part.reshape(-1)
                begin += part.size
        target[begin:] = 0
    return {rows.PIXELS: pixels.reshape(len(made), row_bytes), rows.NOTES: to_array(notes)}


def _even(crop: CropDraw, height: int, width: int) -> Box:
    """Extend the crop by up to a pixel on each side to where chroma, which covers 2 x 2 pixels, starts and ends."""
    bottom, right = crop.top_px + crop.height_px, crop.left_px + crop.width_px
    return crop.top_px & ~1, crop.left_px & ~1, min(bottom + 1 & ~1, height), min(right + 1 & ~1, width)


def _cut_out(frame: NDArray[np.uint8], crop: CropDraw) -> NDArray[np.uint8]:
    across = slice(crop.left_px, crop.left_px + crop.width_px)
    return frame[crop.top_px : crop.top_px + crop.height_px, across]


def _planes(planes: Planes, crop: CropDraw) -> tuple[Parts, Note]:
    frames, height, width = planes.y.shape
    return [planes.y, planes.u, planes.v], NO_CLIP._replace(
        kind=PLANES,
        frames=frames,
        height=height,
        width=width,
        top=crop.top_px & 1,
        left=crop.left_px & 1,
        crop_height=crop.height_px,
        crop_width=crop.width_px,
        mirrored=crop.mirrored,
        matrix=planes.matrix,
        full=planes.full,
        jitter=NO_JITTER.matrix,
    )


def _pixels(pixels: NDArray[np.uint8], mirrored: bool) -> tuple[Parts, Note]:
    frames, height, width, colors = pixels.shape
    return [pixels], NO_CLIP._replace(
        kind=RGB if colors == 3 else FLOW,
        frames=frames,
        height=height,
        width=width,
        crop_height=height,
        crop_width=width,
        mirrored=mirrored,
        jitter=NO_JITTER.matrix,
    )


def _coloured(note: Note, jitter: JitterDraw) -> Note:
    return note._replace(jitter=jitter.matrix, grey_share=jitter.grey_share)
