"""Frames as a decoder yields them: luma and chroma planes, half the bytes of RGB. Runs anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from tpn_ray.errors import BadVideo
from tpn_ray.videos import pixels
from tpn_ray.videos.packets import said

PLANAR = {"yuv420p": False, "yuvj420p": True}
"""Supported pixel formats -> whether the range is full regardless of what the stream says."""

MATRICES = {1: 1, 2: 5, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}
"""Color matrix that a stream declares (ISO/IEC 23091-2) -> the one that swscale converts with."""

Box = tuple[int, int, int, int]
"""top, left, bottom, right in pixels; the last two are exclusive."""

Cut = Callable[[int, int], Box | None]
"""Height and width of the frames -> what to keep of them, with top and left even, or None if planes are not wanted."""


class Planes(NamedTuple):
    """Frames as decoded, 4:2:0. Convert them with `tpn_ray.model.pixels`."""

    y: NDArray[np.uint8]
    """(t, h, w)"""
    u: NDArray[np.uint8]
    """(t, h / 2, w / 2), rounded up"""
    v: NDArray[np.uint8]
    matrix: int
    """A value of MATRICES."""
    full: bool
    """Whether black is 0 and white 255; otherwise they are 16 and 235."""


def whole(height: int, width: int) -> Box:
    """Return the cut that keeps everything."""
    return 0, 0, height, width


def plane_rows(plane: VideoPlane) -> NDArray[np.uint8]:
    """View a plane's memory as (lines, bytes per line), including the padding beyond the picture's edge."""
    return np.frombuffer(plane, dtype=np.uint8).reshape(-1, plane.line_size)  # type: ignore[call-overload, no-any-return]


def flow_of(frame: VideoFrame) -> NDArray[np.uint8]:
    """View a frame of a video of flow as (h, w, 2): x is in the upper half of its luma, y in the lower."""
    both = plane_rows(frame.planes[0])[: frame.height, : frame.width]
    return both.reshape(2, frame.height // 2, frame.width).transpose(1, 2, 0)


def to_rgb(reformatter: VideoReformatter, frame: VideoFrame, width: int, height: int) -> VideoFrame:
    """Convert a frame to RGB in the given size. Raises BadVideo for colors unknown to swscale, such as YCgCo."""
    try:
        return reformatter.reformat(frame, format="rgb24", width=width, height=height, threads=1)
    except av.FFmpegError as error:
        why = f"matrix {frame.colorspace} of {frame.format.name}: {said(error)}"
        raise BadVideo("no_picture", f"its colors cannot be converted to RGB ({why})") from error


class PlaneCollector:
    """Copies decoded frames to their places in several clips, each with its own cut."""

    def __init__(self, lengths: Sequence[int], cuts: Sequence[Cut]) -> None:
        self._lengths, self._cuts = lengths, cuts
        self._form: tuple[object, ...] | None = None
        self._clips: list[Planes] = []
        self._slices: list[tuple[tuple[slice, slice], ...]] = []

    def add(self, frame: VideoFrame, places: Sequence[tuple[int, int]]) -> bool:
        """Copy a frame to its places, given as (clip, place in the clip).

        Return False if it is not plain, upright 8-bit 4:2:0 of even height, or differs in form from the first frame.
        """
        form = (frame.format.name, frame.height, frame.width, frame.colorspace, frame.color_range)
        if self._form is None and not self._begin(frame):
            return False
        self._form = self._form or form
        if form != self._form:
            return False
        for number, plane in enumerate(frame.planes):
            rows = plane_rows(plane)
            for clip, place in places:
                self._clips[clip][:3][number][place] = rows[self._slices[clip][number]]
        return True

    def clips(self) -> list[Planes]:
        """Return all clips, once every place has been filled."""
        return self._clips

    def _begin(self, frame: VideoFrame) -> bool:
        # swscale converts odd heights to RGB differently.
        if frame.format.name not in PLANAR or frame.rotation or frame.height % 2 or frame.colorspace not in MATRICES:
            return False
        matrix = MATRICES[frame.colorspace]
        full = PLANAR[frame.format.name] or frame.color_range == 2
        for length, cut in zip(self._lengths, self._cuts, strict=True):
            box = cut(frame.height, frame.width)
            if box is None:
                return False
            top, left, bottom, right = box
            halves = slice(top // 2, (bottom + 1) // 2), slice(left // 2, (right + 1) // 2)
            slices = (slice(top, bottom), slice(left, right)), halves, halves
            y, u, v = (pixels.empty((length, d.stop - d.start, a.stop - a.start)) for d, a in slices)
            self._slices.append(slices)
            self._clips.append(Planes(y, u, v, matrix, full))
        return True
