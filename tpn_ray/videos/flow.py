"""Optical flow of a video while it is prepared, stored as a second video. Needs OpenCV. Pure; run it in a sandbox.

Frame t of the second video is the flow from frame t to frame t + 1 of the first, in pixels of the stored size: x in the
upper half of a gray picture, y in the lower. As in TSN and I3D, flow is cut off at `bound` and [-bound, bound] becomes
0 to 255. Two things differ: their TV-L1 is in no wheel without extra modules and takes some thirty times as long as DIS
(Kroeger et al., ECCV 2016), and they store JPEG. Flow comes from the luma of the frames before their encoding.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, BinaryIO

import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

from tpn_ray.errors import BadVideo
from tpn_ray.videos.encode import EncodeConfig, VideoWriter, prepare_plain
from tpn_ray.videos.packets import DecodeLimits
from tpn_ray.videos.planes import plane_rows
from tpn_ray.videos.source_frames import Segment

LEAST_PX = 32
"""Side to which smaller frames are padded: OpenCV's DIS fails, and may crash, on frames of few pixels."""

# In a worker, one thread; and only code that is compiled for every CPU, so that no CPU gives other bits. It is as fast.
cv2.setNumThreads(1)
cv2.setUseOptimized(False)


def prepare_with_flow(
    source: BinaryIO | bytes, segment: Segment | None, config: EncodeConfig, limits: DecodeLimits
) -> dict[str, Any]:
    """Do what `encode.prepare_plain` does, and add the video of the flow. Raises BadVideo if there is none."""
    flow = FlowEncoder(config)
    made = prepare_plain(source, segment, config, limits, flow.add)
    return {**made, "flow": flow.finish()}


def rehearse() -> None:
    """Compute the flow of a small frame, so that OpenCV loads what it loads lazily."""
    dense_flow(np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8))


class FlowEncoder:
    """Encodes the flow between the frames that it is shown, each at the time of the first of two."""

    def __init__(self, config: EncodeConfig) -> None:
        self.config = config
        self._before: tuple[NDArray[np.uint8], int] | None = None
        self._writer: VideoWriter | None = None

    def add(self, frame: VideoFrame, moment: int, tick_seconds: Fraction) -> None:
        """Take the next yuv420p frame, at `moment` in ticks."""
        luma = plane_rows(frame.planes[0])[: frame.height, : frame.width].copy()
        if self._before is not None:
            before, begin = self._before
            if self._writer is None:
                self._writer = VideoWriter(self.config, frame.width, 2 * frame.height, "gray", tick_seconds)
                self._writer.context.color_range = ColorRange.JPEG
            levels = to_levels(dense_flow(before, luma), self.config.flow_bound_px)
            picture = np.concatenate([levels[..., 0], levels[..., 1]])
            self._writer.add(VideoFrame.from_ndarray(picture, format="gray"), begin)
        self._before = luma, moment

    def finish(self) -> bytes:
        """Finish the video and return it."""
        if self._writer is None:
            raise BadVideo("too_short", "flow needs at least 2 frames")
        return self._writer.finish()


def dense_flow(first: UInt8[np.ndarray, "h w"], second: UInt8[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 2"]:
    """Return how far each pixel of the first frame moves to the right and down until the second, in pixels."""
    height, width = first.shape
    rim = (0, max(0, LEAST_PX - height)), (0, max(0, LEAST_PX - width))
    one, other = (np.pad(frame, rim, mode="edge") for frame in (first, second))
    # A new one for each pair: no result depends on what was computed before.
    flow = np.zeros((*one.shape, 2), np.float32)
    cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(one, other, flow)
    return flow[:height, :width]


def to_levels(flow: Float[np.ndarray, "*s"], bound_px: float) -> UInt8[np.ndarray, "*s"]:
    """Convert flow in pixels to 0..255, as TSN's and I3D's: -bound is 0, bound is 255, and no flow is 128."""
    levels: NDArray[np.uint8] = np.rint((flow.clip(-bound_px, bound_px) + bound_px) * (255 / (2 * bound_px))).astype(
        np.uint8
    )
    return levels
