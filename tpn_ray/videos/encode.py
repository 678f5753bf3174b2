"""Converts any stored video to a short H.264 MP4 from which clips decode fast. Pure; run it in a sandbox.

The format is called tempo-layered: short closed GOPs of a fixed length, with seven unreferenced B-frames between
anchors. A clip then costs only its own frames and their anchors, whatever its stride and start, and CAVLC entropy
coding halves the remaining cost. Frames keep their presentation times, are stored upright, and have a short side of
`short_side_px`. Audio is dropped.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from tpn_ray.errors import BadVideo, ConfigError
from tpn_ray.names import no_such
from tpn_ray.videos import packets
from tpn_ray.videos.decode import open_video
from tpn_ray.videos.mp4_writer import open_mp4
from tpn_ray.videos.packets import DecodeLimits
from tpn_ray.videos.planes import plane_rows, to_rgb
from tpn_ray.videos.source_frames import Segment, refuse_false_length, segment_frames, whole_frames

PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
MOST_SIDE_PX = 16384
"""Largest side that x264 supports, in pixels."""

MOST_TICKS_PER_SECOND = 1_000_000
"""Finest time resolution. Finer times are rounded to microseconds, because an MP4 counts its whole length in ticks."""

SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
"""Scaling flags that give the same pixels on every CPU."""


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """How videos are stored."""

    short_side_px: int = 256
    """Smaller of height and width, in pixels; smaller videos are not enlarged."""

    gop_frames: int = 32
    """Distance between keyframes, in frames. Longer GOPs take less disk space but decode more slowly."""

    crf: float = 23.0
    """Constant quality of x264: 0 is lossless, 51 is worst; 23 is within 0.5 dB of a GOP of 12 at the same value."""

    preset: str = "medium"
    """Effort of x264, from ultrafast to veryslow: slower presets make smaller files."""

    copy: bool = False
    """Whether to keep the compressed pictures and remove only the audio; the fields above are then unused. Not for
    segments of longer videos."""

    min_frames: int = 4
    """Minimum number of frames; shorter videos are quarantined as too short."""

    flow: bool = False
    """Whether to store optical flow as well, for recipes with clip.modality flow. Needs OpenCV, and three to five times
    the CPU time."""

    flow_bound_px: float = 20.0
    """Largest flow that can be stored, in pixels per frame of the stored size; larger flow is cut off there."""

    def __post_init__(self) -> None:
        if self.short_side_px < 16 or self.short_side_px % 2:
            raise ConfigError(f"short_side_px is {self.short_side_px}; it must be even and at least 16")
        if self.gop_frames < 1:
            raise ConfigError(f"gop_frames is {self.gop_frames}; it must be at least 1")
        if not 0 <= self.crf <= 51:
            raise ConfigError(f"crf is {self.crf}; it must be between 0 and 51")
        if self.preset not in PRESETS:
            raise ConfigError(no_such("preset", self.preset, PRESETS))
        if self.min_frames < 1:
            raise ConfigError(f"min_frames is {self.min_frames}; it must be at least 1")
        if not self.flow_bound_px > 0:
            raise ConfigError(f"flow_bound_px is {self.flow_bound_px}; it must be above 0")
        if self.flow and self.copy:
            raise ConfigError("flow is computed between frames of the stored size: leave out --copy, or --flow")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A video as it is stored."""

    video: bytes
    times_us: list[int]
    """Presentation time of each frame in microseconds; the first is 0."""
    frames_per_second: float
    """Average frame rate of the video."""
    height: int
    width: int
    flow: bytes = b""
    """The second video, which holds the flow (flow.py); empty if there is none."""


Watch = Callable[[VideoFrame, int, Fraction], None]
"""Sees every frame as it is encoded, with its time in ticks and the length of a tick in seconds."""


def prepare_video(
    source: BinaryIO, segment: Segment | None, config: EncodeConfig, limits: DecodeLimits, watch: Watch | None = None
) -> Prepared:
    """Check and convert one video, or one segment of it. Raises BadVideo if it cannot be used."""
    if segment:
        frames = segment_frames(source, segment, limits)
    else:
        data = source.read()
        refuse_false_length(data, limits)
        if config.copy:
            return _copy(data, config, limits)
        frames = whole_frames(data, limits)
    output = Encoder(config, watch)
    for ticks, frame, tick_seconds in frames:
        output.add(ticks, frame, tick_seconds)
    _refuse_short(output.count, config)
    return output.finish()


def prepare_plain(
    source: BinaryIO | bytes,
    segment: Segment | None,
    config: EncodeConfig,
    limits: DecodeLimits,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Call `prepare_video` and return plain values, which can leave a sandbox."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    made = prepare_video(file, segment, config, limits, watch)
    return {field.name: getattr(made, field.name) for field in fields(made)}


def _refuse_short(frames: int, config: EncodeConfig) -> None:
    if frames < config.min_frames:
        raise BadVideo("too_short", f"{frames} frames, at least {config.min_frames} are needed")


# --- the tempo-layered form


class VideoWriter:
    """Writes an H.264 MP4 in memory. Deterministic: one thread, no dates."""

    def __init__(self, config: EncodeConfig, width: int, height: int, pixel_format: str, tick: Fraction) -> None:
        if max(width, height) > MOST_SIDE_PX:
            raise BadVideo("too_large", f"stored at {width} x {height} pixels; H.264 allows {MOST_SIDE_PX} per side")
        self._file = io.BytesIO()
        self._output = open_mp4(self._file)
        # The rate only tells x264 which frame duration to expect; the frames carry their own times.
        self._stream = self._output.add_stream("libx264", rate=25, options=_options(config))
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = pixel_format
        self._stream.thread_count = 1  # the number of threads changes x264's bytes
        self.context = self._stream.codec_context
        self._tick = self.context.time_base = self._stream.time_base = tick

    def add(self, frame: VideoFrame, moment: int) -> None:
        """Add the next frame in presentation order, at `moment` in ticks."""
        frame.pts, frame.time_base = moment, self._tick
        frame.pict_type = PictureType.NONE  # otherwise x264 repeats the source's frame types and loses the layers
        self._output.mux(self._stream.encode(frame))

    def finish(self) -> bytes:
        """Finish the file and return it; at least one frame must have been added."""
        self._output.mux(self._stream.encode(None))
        self._output.close()
        return self._file.getvalue()


def _options(config: EncodeConfig) -> dict[str, str]:
    gop = config.gop_frames
    layers = {
        "keyint": gop, "min-keyint": gop, "scenecut": 0, "open-gop": 0,
        "bframes": 7, "b-adapt": 0, "b-pyramid": "none", "cabac": 0, "weightp": 0, "weightb": 0,
        "lookahead-threads": 1, "cpu-independent": 1,
    }  # fmt: skip
    parameters = ":".join(f"{name}={value}" for name, value in layers.items())
    return {"preset": config.preset, "crf": f"{config.crf:g}", "x264-params": parameters}


class Encoder:
    """Encodes the frames of a video in the size of the first frame."""

    def __init__(self, config: EncodeConfig, watch: Watch | None = None) -> None:
        self.config, self.watch = config, watch
        self.times: list[int] = []
        self._reformatter = VideoReformatter()
        self._writer: VideoWriter | None = None

    @property
    def count(self) -> int:
        """Number of frames so far."""
        return len(self.times)

    def add(self, ticks: int, frame: VideoFrame, tick_seconds: Fraction) -> None:
        """Add the next frame in presentation order, at `ticks` of `tick_seconds` after some origin."""
        if self._writer is None:
            self._writer = self._begin(ticks, frame, tick_seconds)
        moment = self._in_ticks(ticks - self._origin, tick_seconds)
        if self.times and moment <= self.times[-1]:
            return  # two frames in the same microsecond
        small = self._upright(frame)
        self.times.append(moment)
        if self.watch:
            self.watch(small, moment, self._tick)
        self._writer.add(small, moment)

    def _in_ticks(self, ticks: int, tick_seconds: Fraction) -> int:
        return ticks if self._tick == tick_seconds else round(ticks * tick_seconds / self._tick)

    def finish(self) -> Prepared:
        """Finish the file and return it; at least one frame must have been added."""
        assert self._writer is not None
        return Prepared(
            video=self._writer.finish(),
            times_us=in_microseconds(self.times, self._tick),
            frames_per_second=average_rate(self.times, self._tick),
            height=self._height,
            width=self._width,
        )

    def _begin(self, ticks: int, frame: VideoFrame, tick_seconds: Fraction) -> VideoWriter:
        self._origin = ticks
        fine = tick_seconds < Fraction(1, MOST_TICKS_PER_SECOND)
        self._tick = Fraction(1, MOST_TICKS_PER_SECOND) if fine else tick_seconds
        turned = round(frame.rotation / 90) % 2 == 1
        width, height = (frame.height, frame.width) if turned else (frame.width, frame.height)
        scale = min(1.0, self.config.short_side_px / min(width, height))
        self._width, self._height = even(width * scale), even(height * scale)
        to_rgb(VideoReformatter(), frame, 16, 16)  # fail on inconvertible colors now rather than in training
        writer = VideoWriter(self.config, self._width, self._height, "yuv420p", self._tick)
        writer.context.color_range = ColorRange.MPEG
        writer.context.colorspace = frame.colorspace
        writer.context.color_primaries, writer.context.color_trc = frame.color_primaries, frame.color_trc
        return writer

    def _upright(self, frame: VideoFrame) -> VideoFrame:
        """Return the frame as displayed, in the output's size and format."""
        turns = round(frame.rotation / 90) % 4
        width, height = self._width, self._height
        if turns % 2:
            width, height = height, width
        small = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="yuv420p",
            interpolation=SCALING,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        if turns:
            return turned_planes(small, turns)
        if small is frame:  # already in the right format: do not change the decoder's frame
            small = VideoFrame.from_ndarray(frame.to_ndarray(), format="yuv420p")
        return small


def turned_planes(frame: VideoFrame, turns: int) -> VideoFrame:
    """Rotate a yuv420p frame by counter-clockwise quarter turns."""
    planes = [np.rot90(plane_rows(plane)[: plane.height, : plane.width], turns) for plane in frame.planes]
    height, width = planes[0].shape
    flat = np.concatenate([np.ascontiguousarray(plane).reshape(-1) for plane in planes])
    return VideoFrame.from_ndarray(flat.reshape(height * 3 // 2, width), format="yuv420p")


def even(pixels: float) -> int:
    """Round to the nearest even number that is at least 2: 4:2:0 halves both sides."""
    return max(2, 2 * round(pixels / 2))


def in_microseconds(times: list[int], tick_seconds: Fraction) -> list[int]:
    """Convert times in ticks to whole microseconds."""
    return [round(moment * tick_seconds * 1_000_000) for moment in times]


def average_rate(times: list[int], tick_seconds: Fraction) -> float:
    """Return the frames per second from the first to the last frame; 0 for a single frame."""
    span = float((times[-1] - times[0]) * tick_seconds)
    return (len(times) - 1) / span if span else 0.0


# --- copying


def _copy(data: bytes, config: EncodeConfig, limits: DecodeLimits) -> Prepared:
    """Return the same pictures without audio, after checking that all of them decode.

    A file whose stream MP4 cannot hold, or whose frames carry no times, stays as it is, including its audio.
    """
    with open_video(data, limits) as video:
        moments = [ticks for ticks, _ in video.all_frames()]
        times, tick_seconds = [moment - moments[0] for moment in moments], video.tick_seconds
        height, width, has_times = video.height, video.width, video.has_times
    _refuse_short(len(times), config)
    return Prepared(
        video=(_without_sound(data, len(times), limits) if has_times else None) or data,
        times_us=in_microseconds(times, tick_seconds),
        frames_per_second=average_rate(times, tick_seconds),
        height=height,
        width=width,
    )


def _without_sound(data: bytes, frames: int, limits: DecodeLimits) -> bytes | None:
    """Copy the packets unchanged into an MP4; return None if MP4 cannot hold them."""
    file = io.BytesIO()
    try:
        with packets.open_container(data, limits) as container:
            stream = packets.video_stream(container, limits)
            with open_mp4(file) as output:
                target = output.add_stream_from_template(stream, opaque=True)
                for packet in container.demux(stream):
                    if packet.size > 0:
                        packet.stream = target
                        output.mux(packet)
        with open_video(file.getvalue(), limits) as copied:
            return file.getvalue() if copied.has_times and copied.frame_count == frames else None
    except (av.FFmpegError, ValueError, BadVideo):
        return None
