"""Decodes frames: video bytes and frame indices -> uint8 frames. With tracks.py, the only code that reads videos.

Decoding is exact and sparse: the requested frames are bit for bit those of a full decode, and little else is decoded.

  * all packets are known: their presentation times are the frame index, and "seeking" means choosing the packet to
    start with, so no container's seek table has to be trusted;
  * decoding starts at the last keyframe at or before a requested frame and ends with the packet of the last one;
  * H.264 and HEVC frames that are neither requested nor referenced are not decoded;
  * only requested frames are converted to RGB; there is one decoder thread, because a worker has one core.

Files whose packets carry no usable times are decoded from the beginning. Runs anywhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from tpn_ray.errors import BadVideo
from tpn_ray.videos import bitstream, packets, pixels
from tpn_ray.videos.packets import DecodeLimits
from tpn_ray.videos.planes import Cut, PlaneCollector, Planes, flow_of, plane_rows, to_rgb, whole
from tpn_ray.videos.tracks import open_track

__all__ = ["DecodeLimits", "Shrink", "Video", "open_video"]

Shrink = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""What to keep of a frame: RGB (h, w, 3), or flow (h, w, 2)."""


@contextlib.contextmanager
def open_video(data: bytes, limits: DecodeLimits | None = None, *, flow: bool = False) -> Iterator[Video]:
    """Open a video held in memory for the length of a `with` block. Raises BadVideo with the reason.

    If it is one of optical flow (flow.py), `flow` must be set: its frames then have the channels x and y, not RGB.
    """
    video = Video(data, limits or DecodeLimits(), flow=flow)
    try:
        yield video
    finally:
        video.close()


class Video:
    """An open video: its frame index, and access to any of its frames."""

    def __init__(self, data: bytes, limits: DecodeLimits, *, flow: bool = False) -> None:
        """Read the container and the packets; decode nothing yet."""
        self.is_flow = flow
        self._clock = packets.CpuLimit(limits.max_seconds)
        self._track = open_track(data, limits, self._clock)
        self._index = self._track.index
        self._reformatter = VideoReformatter()
        self._unreferenced = self._track.at_a_glance()
        self._hevc_top_layer: int | None = None
        self._counted: int | None = None
        self._stored: tuple[int, int] | None = None
        self._displayed: tuple[int, int] | None = None

    def close(self) -> None:
        """Free the decoders and the packets."""
        self._track.close()

    @property
    def frame_count(self) -> int:
        """Number of frames with packets in the file. Without times in the file, this costs one full decode, once."""
        if self._index is not None:
            return len(self._index.times)
        if self._counted is None:
            self._clock.restart()
            self._counted = sum(1 for _ in self.decoded(range(self._track.first_key, len(self._track))))
            if self._counted == 0:
                raise BadVideo("no_picture", f"none of {len(self._track)} packets gave a frame")
        return self._counted

    @property
    def frames_per_second(self) -> float:
        """Average frame rate; 0 if the file does not say."""
        return float(self._track.frames_per_second or 0)

    @property
    def height(self) -> int:
        """Height as displayed, in pixels."""
        return self._displayed_shape()[0]

    @property
    def width(self) -> int:
        """Width as displayed, in pixels."""
        return self._displayed_shape()[1]

    def seconds(self) -> NDArray[np.float64]:
        """Return when each frame is shown, starting at 0; equally spaced if the file does not say."""
        if self._index is None:
            ticks = np.arange(self.frame_count, dtype=np.float64)
        else:
            times = np.array(self._index.times, dtype=np.int64)
            ticks = (times - times[0]).astype(np.float64)
        seconds: NDArray[np.float64] = ticks * float(self.tick_seconds)
        return seconds

    def frames(
        self,
        indices: Sequence[int] | NDArray[np.int64],
        shrink: Shrink | None = None,
    ) -> NDArray[np.uint8]:
        """Decode the RGB frames (t, h, w, 3) at `indices` in presentation order; these may be unsorted and repeat.

        Of flow, frames are (t, h, w, 2). `shrink` is applied to each frame as it is decoded, so that large frames are
        never held together.
        Raises IndexError for an index outside [0, frame_count) and BadVideo for frames that cannot be decoded.
        """
        return self.clip_frames([indices], [shrink])[0]

    def clip_frames(
        self, clips: Sequence[Sequence[int] | NDArray[np.int64]], shrinks: Sequence[Shrink | None]
    ) -> list[NDArray[np.uint8]]:
        """Decode the RGB frames of several clips in one pass that decodes each frame once.

        Each clip has its own `shrink`. Raises as `frames` does.
        """
        owners = [(clip, place) for clip, indices in enumerate(clips) for place in range(len(indices))]
        places = self._places(np.concatenate([np.asarray(indices) for indices in clips]))
        made: list[NDArray[np.uint8] | None] = [None] * len(clips)
        for index, frame in self._wanted_frames(sorted(places)):
            whole_frame = flow_of(frame) if self.is_flow else self._to_rgb(frame)
            self._displayed = whole_frame.shape[:2]
            shrunk: dict[int, NDArray[np.uint8]] = {}
            for clip, place in (owners[one] for one in places.pop(index)):
                shrink = shrinks[clip]
                if clip not in shrunk:
                    shrunk[clip] = whole_frame if shrink is None else shrink(whole_frame)
                target = made[clip]
                if target is None:
                    target = made[clip] = pixels.empty((len(clips[clip]), *shrunk[clip].shape))
                target[place] = shrunk[clip]
        whole_clips = [one for one in made if one is not None]
        if places or len(whole_clips) < len(clips):
            raise _not_decoded(places)
        return whole_clips

    def planes(self, indices: Sequence[int] | NDArray[np.int64], cut: Cut = whole) -> Planes | None:
        """Decode the same frames without conversion; None unless the video is plain, upright 8-bit 4:2:0.

        `cut` says what to keep of them; the result is also None if it wants no planes.
        """
        clips = self.clip_planes([indices], [cut])
        return clips[0] if clips else None

    def clip_planes(
        self, clips: Sequence[Sequence[int] | NDArray[np.int64]], cuts: Sequence[Cut]
    ) -> list[Planes] | None:
        """Decode the planes of several clips, each with its own cut, in one pass that decodes each frame once."""
        if self.is_flow:
            return None
        owners = [(clip, place) for clip, indices in enumerate(clips) for place in range(len(indices))]
        places = self._places(np.concatenate([np.asarray(indices) for indices in clips]))
        collector = PlaneCollector([len(indices) for indices in clips], cuts)
        for index, frame in self._wanted_frames(sorted(places)):
            self._stored = self._stored or (frame.height, frame.width)  # in case RGB frames are wanted instead
            if not collector.add(frame, [owners[place] for place in places.pop(index)]):
                return None
        if places:
            raise _not_decoded(places)
        return collector.clips()

    def decode_only(self, indices: Sequence[int] | NDArray[np.int64]) -> int:
        """Decode the same frames, drop them, and return their number: the lower bound that benchmarks compare with."""
        return sum(1 for _ in self._wanted_frames(sorted(self._places(indices))))

    def _places(self, indices: Sequence[int] | NDArray[np.int64]) -> dict[int, list[int]]:
        """Map each distinct frame to its places in the result. This starts a new call, with a new time limit."""
        wanted = [int(index) for index in indices]
        if not wanted:
            raise ValueError("no frame indices were given")
        if min(wanted) < 0 or max(wanted) >= self.frame_count:
            raise IndexError(f"frames {min(wanted)}..{max(wanted)} of a video of {self.frame_count}")
        self._clock.restart()
        places: dict[int, list[int]] = {}
        for place, index in enumerate(wanted):
            places.setdefault(index, []).append(place)
        return places

    @property
    def has_times(self) -> bool:
        """Whether the file says when each frame is shown; otherwise only the order of the frames is known."""
        return self._index is not None

    @property
    def tick_seconds(self) -> Fraction:
        """Length of one tick of the times of `all_frames`, in seconds."""
        if self._index is not None and self._track.tick_seconds:
            return self._track.tick_seconds
        return 1 / (self._track.frames_per_second or Fraction(25))

    def all_frames(self) -> Iterator[tuple[int, VideoFrame]]:
        """Yield (presentation time in ticks, frame as decoded) for every frame in order, as a re-encoder needs them.

        A file without times gets equally spaced ones. Raises BadVideo for a frame that cannot be decoded.
        """
        self._clock.restart()
        expected = self._index.times if self._index is not None else None
        count = 0
        for frame in self.decoded(range(self._track.first_key, len(self._track))):
            if expected is None:
                yield count, frame
                count += 1
            elif count < len(expected) and frame.pts == expected[count]:
                yield expected[count], frame
                count += 1
        if expected is not None and count < len(expected):
            raise BadVideo("damaged", f"{len(expected) - count} of {len(expected)} frames were not decoded")
        if count == 0:
            raise BadVideo("no_picture", f"none of {len(self._track)} packets gave a frame")

    # --- choosing packets

    def _wanted_frames(self, wanted: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Yield (index, frame) for each requested frame that can be decoded, in presentation order."""
        if self._index is None:
            yield from self._by_counting(wanted)
            return
        missing = set(wanted)
        for begin, indices in self._index.runs(wanted):
            yield from self._by_time(begin, indices, missing, drop=True)
        if missing:
            # The stream's keyframes do not start afresh, or their flags are wrong: decode from the first keyframe
            # instead.
            yield from self._by_time(self._track.first_key, sorted(missing), missing, drop=False)

    def _by_time(
        self, begin: int, indices: list[int], missing: set[int], *, drop: bool
    ) -> Iterator[tuple[int, VideoFrame]]:
        assert self._index is not None
        wanted = {self._index.times[index]: index for index in indices}
        carriers = {self._index.packets[index] for index in indices}
        known = self._unreferenced
        chosen = [
            at
            for at in range(begin, max(carriers) + 1)
            if at in carriers or not (drop and (known[at] or self._is_needless(at, begin)))
        ]
        if not chosen:  # a damaged file may show its frames before its first keyframe
            return
        for frame in self.decoded(chosen):
            index = wanted.get(frame.pts) if frame.pts is not None else None
            if index is not None and index in missing:
                missing.discard(index)
                yield index, frame

    def _by_counting(self, wanted: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        chosen, last = set(wanted), max(wanted)
        for index, frame in enumerate(self.decoded(range(self._track.first_key, len(self._track)))):
            if index in chosen:
                yield index, frame
            if index == last:
                return

    def _is_needless(self, at: int, begin: int) -> bool:
        """Return whether an unwanted packet affects no wanted frame when decoding starts at keyframe `begin`."""
        time, key_time = self._track.time(at), self._track.time(begin)
        # In an open GOP, frames shown before their keyframe refer to the previous GOP and otherwise only to each other.
        leads = self._track.is_key(begin) and time is not None and key_time is not None and time < key_time
        return leads or self._is_unreferenced(at)

    def _is_unreferenced(self, at: int) -> bool:
        if self._track.codec not in ("h264", "hevc"):
            return False
        known = self._unreferenced[at]
        if known is None:
            known = self._unreferenced[at] = self._look_unreferenced(at)
        return known

    def _look_unreferenced(self, at: int) -> bool:
        payload, length_bytes = self._track.payload(at), self._track.nal_length_bytes
        if self._track.codec == "h264":
            return bitstream.h264_is_unreferenced(payload, length_bytes)
        if self._hevc_top_layer is None:
            layers = (bitstream.hevc_sublayer(self._track.payload(i), length_bytes) for i in range(len(self._track)))
            self._hevc_top_layer = max((layer[0] for layer in layers if layer), default=0)
        return bitstream.hevc_sublayer(payload, length_bytes) == (self._hevc_top_layer, True)

    # --- decoding

    def decoded(self, chosen: Sequence[int]) -> Iterator[VideoFrame]:
        """Decode these packets with a flushed decoder, in this order, and yield all frames."""
        context = self._decoder(chosen[0])
        if context.is_open:
            context.flush_buffers()
        try:
            for at in chosen:
                self._clock.check()
                yield from context.decode(self._track.packet(at))
            # Flush the frames held back for reordering, without decoding further packets for them.
            yield from context.decode(None)
        except av.FFmpegError as error:
            raise BadVideo(
                "damaged", f"the {self._track.codec} decoder refused a packet: {packets.said(error)}"
            ) from error

    def _decoder(self, begin: int) -> VideoCodecContext:
        """Return the decoder for a run that starts with this packet.

        It rejects damage instead of concealing it ("explode"). But H.264 decoders then also reject an open GOP entered
        in its middle, whose frames name references that are missing and that they do not use.
        """
        clean = self._track.codec != "h264" or bitstream.h264_is_idr(
            self._track.payload(begin), self._track.nal_length_bytes
        )
        return self._track.decoder(strict=clean)

    def _to_rgb(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Convert one frame to RGB (h, w, 3) as displayed. If the size changes mid-video, the first frame's is used."""
        self._stored = height, width = self._stored or (frame.height, frame.width)
        rgb = to_rgb(self._reformatter, frame, width, height)
        upright = plane_rows(rgb.planes[0])[:height, : width * 3].reshape(height, width, 3)
        return np.rot90(upright, _quarter_turns(frame)) if frame.rotation else upright

    def _displayed_shape(self) -> tuple[int, int]:
        """Return (height, width); the rotation is known only from a decoded frame."""
        return self._displayed or self.frames([0]).shape[1:3]


def _quarter_turns(frame: VideoFrame) -> int:
    """Return the counter-clockwise quarter turns for display. Mirrored display matrices are not applied."""
    return round(frame.rotation / 90) % 4


def _not_decoded(places: dict[int, list[int]]) -> BadVideo:
    return BadVideo("damaged", f"{len(places)} wanted frames were not decoded, the first is {min(places)}")
