"""A stored video of any kind -> a short H.264 MP4 that clips are decoded from fast. Pure; run it in a sandbox.

The form is called tempo-layered: a fixed short closed GOP, and seven B-frames between anchors that nothing refers to.
A clip then costs its own frames and their anchors, whatever its stride and start; entropy coding by CAVLC halves what
is left. Frames keep their presentation times, stand upright, and have a short side of `short_side_px`. No sound.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
from av.container import OutputContainer
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from tpn_ray.errors import BadVideo, ConfigError
from tpn_ray.videos import packets
from tpn_ray.videos.decode import open_video
from tpn_ray.videos.mp4_writer import open_mp4
from tpn_ray.videos.packets import DecodeLimits
from tpn_ray.videos.planes import plane_rows, to_rgb
from tpn_ray.videos.source_frames import Segment, refuse_false_length, segment_frames, whole_frames

PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
MOST_SIDE_PX = 16384
"""x264 makes no larger pictures."""

MOST_TICKS_PER_SECOND = 1_000_000
"""Finer times than microseconds are rounded: an MP4 counts its whole length in ticks."""

SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
"""The same pixels on every kind of CPU."""


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """How videos are stored."""

    short_side_px: int = 256
    """Height or width, whichever is smaller; smaller videos are not enlarged."""

    gop_frames: int = 32
    """Distance between keyframes. Longer is smaller on disk, and slower to decode from."""

    crf: float = 23.0
    """x264's constant quality: 0 is lossless, 51 is worst; 23 is within 0.5 dB of a GOP of 12 at the same value."""

    preset: str = "medium"
    """x264's effort, from ultrafast to veryslow: a slower one makes smaller files."""

    copy: bool = False
    """Keep the compressed pictures as they are and take only the sound out; the fields above are then not used. Not for
    segments of longer videos."""

    min_frames: int = 4
    """A video with fewer frames is quarantined as too short."""

    def __post_init__(self) -> None:
        if self.short_side_px < 16 or self.short_side_px % 2:
            raise ConfigError(f"short_side_px is {self.short_side_px}; it must be even and at least 16")
        if self.gop_frames < 1:
            raise ConfigError(f"gop_frames is {self.gop_frames}; it must be at least 1")
        if not 0 <= self.crf <= 51:
            raise ConfigError(f"crf is {self.crf}; it must be between 0 and 51")
        if self.preset not in PRESETS:
            raise ConfigError(f"unknown preset {self.preset!r}; known: {', '.join(PRESETS)}")
        if self.min_frames < 1:
            raise ConfigError(f"min_frames is {self.min_frames}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A video as it is stored."""

    video: bytes
    times_us: list[int]
    """Presentation time of each frame in microseconds; the first is 0."""
    frames_per_second: float
    """Average over the video."""
    height: int
    width: int


def prepare_video(source: BinaryIO, segment: Segment | None, config: EncodeConfig, limits: DecodeLimits) -> Prepared:
    """Check and convert one video, or one segment of it. Raises BadVideo with the reason it cannot be used."""
    if segment:
        frames = segment_frames(source, segment, limits)
    else:
        data = source.read()
        refuse_false_length(data, limits)
        if config.copy:
            return _copy(data, config, limits)
        frames = whole_frames(data, limits)
    output = Encoder(config)
    for ticks, frame, tick_seconds in frames:
        output.add(ticks, frame, tick_seconds)
    _refuse_short(output.count, config)
    return output.finish()


def prepare_plain(
    source: BinaryIO | bytes, segment: Segment | None, config: EncodeConfig, limits: DecodeLimits
) -> dict[str, Any]:
    """`prepare_video` as plain values, which can leave a sandbox."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    made = prepare_video(file, segment, config, limits)
    return {field.name: getattr(made, field.name) for field in fields(made)}


def _refuse_short(frames: int, config: EncodeConfig) -> None:
    if frames < config.min_frames:
        raise BadVideo("too_short", f"{frames} frames, at least {config.min_frames} are needed")


# --- the tempo-layered form


class Encoder:
    """Frames -> MP4. The size is that of the first frame; the same bytes on every run: one thread, no dates."""

    def __init__(self, config: EncodeConfig) -> None:
        self.config = config
        self.times: list[int] = []
        self._file = io.BytesIO()
        self._reformatter = VideoReformatter()
        self._output: OutputContainer | None = None

    @property
    def count(self) -> int:
        """Frames so far."""
        return len(self.times)

    def add(self, ticks: int, frame: VideoFrame, tick_seconds: Fraction) -> None:
        """The next frame in presentation order, `ticks` of `tick_seconds` after some origin."""
        if self._output is None:
            self._begin(ticks, frame, tick_seconds)
        assert self._output is not None
        moment = self._in_ticks(ticks - self._origin, tick_seconds)
        if self.times and moment <= self.times[-1]:
            return  # two frames in the same microsecond
        small = self._upright(frame)
        small.pts, small.time_base = moment, self._tick
        small.pict_type = PictureType.NONE  # else x264 repeats the source's frame types, and the layers are lost
        self.times.append(moment)
        self._output.mux(self._stream.encode(small))

    def _in_ticks(self, ticks: int, tick_seconds: Fraction) -> int:
        return ticks if self._tick == tick_seconds else round(ticks * tick_seconds / self._tick)

    def finish(self) -> Prepared:
        """The whole file; at least one frame was added."""
        assert self._output is not None
        self._output.mux(self._stream.encode(None))
        self._output.close()
        return Prepared(
            video=self._file.getvalue(),
            times_us=in_microseconds(self.times, self._tick),
            frames_per_second=average_rate(self.times, self._tick),
            height=self._stream.height,
            width=self._stream.width,
        )

    def _begin(self, ticks: int, frame: VideoFrame, tick_seconds: Fraction) -> None:
        self._origin = ticks
        fine = tick_seconds < Fraction(1, MOST_TICKS_PER_SECOND)
        self._tick = Fraction(1, MOST_TICKS_PER_SECOND) if fine else tick_seconds
        turned = round(frame.rotation / 90) % 2 == 1
        width, height = (frame.height, frame.width) if turned else (frame.width, frame.height)
        scale = min(1.0, self.config.short_side_px / min(width, height))
        width, height = even(width * scale), even(height * scale)
        if max(width, height) > MOST_SIDE_PX:
            raise BadVideo("too_large", f"stored at {width} x {height} pixels; H.264 takes {MOST_SIDE_PX} a side")
        to_rgb(VideoReformatter(), frame, 16, 16)  # colours that cannot be converted: now, not while training
        self._output = open_mp4(self._file)
        # The rate only sets x264's expectation of a frame's duration; times come with the frames.
        self._stream = self._output.add_stream("libx264", rate=25, options=self._options())
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p"
        self._stream.thread_count = 1  # the number of threads changes x264's bytes
        context = self._stream.codec_context
        context.time_base = self._stream.time_base = self._tick
        context.color_range = ColorRange.MPEG
        context.colorspace = frame.colorspace
        context.color_primaries, context.color_trc = frame.color_primaries, frame.color_trc

    def _options(self) -> dict[str, str]:
        gop = self.config.gop_frames
        layers = {
            "keyint": gop, "min-keyint": gop, "scenecut": 0, "open-gop": 0,
            "bframes": 7, "b-adapt": 0, "b-pyramid": "none", "cabac": 0, "weightp": 0, "weightb": 0,
            "lookahead-threads": 1, "cpu-independent": 1,
        }  # fmt: skip
        parameters = ":".join(f"{name}={value}" for name, value in layers.items())
        return {"preset": self.config.preset, "crf": f"{self.config.crf:g}", "x264-params": parameters}

    def _upright(self, frame: VideoFrame) -> VideoFrame:
        """The frame as displayed, in the output's size and format."""
        turns = round(frame.rotation / 90) % 4
        width, height = self._stream.width, self._stream.height
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
        if small is frame:  # decoded in the right form already: its metadata is not ours to change
            small = VideoFrame.from_ndarray(frame.to_ndarray(), format="yuv420p")
        return small


def turned_planes(frame: VideoFrame, turns: int) -> VideoFrame:
    """A yuv420p frame after counter-clockwise quarter turns."""
    planes = [np.rot90(plane_rows(plane)[: plane.height, : plane.width], turns) for plane in frame.planes]
    height, width = planes[0].shape
    flat = np.concatenate([np.ascontiguousarray(plane).reshape(-1) for plane in planes])
    return VideoFrame.from_ndarray(flat.reshape(height * 3 // 2, width), format="yuv420p")


def even(pixels: float) -> int:
    """The nearest even number of at least 2: 4:2:0 halves both sides."""
    return max(2, 2 * round(pixels / 2))


def in_microseconds(times: list[int], tick_seconds: Fraction) -> list[int]:
    """Times in ticks as whole microseconds."""
    return [round(moment * tick_seconds * 1_000_000) for moment in times]


def average_rate(times: list[int], tick_seconds: Fraction) -> float:
    """Frames per second, from the first to the last frame; 0 for a single frame."""
    span = float((times[-1] - times[0]) * tick_seconds)
    return (len(times) - 1) / span if span else 0.0


# --- copying


def _copy(data: bytes, config: EncodeConfig, limits: DecodeLimits) -> Prepared:
    """The same pictures without sound, once all of them were decoded.

    A file whose stream MP4 cannot hold, or whose frames have no times in it, stays as it is, sound and all.
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
    """The packets as they are in an MP4; None where MP4 does not take them."""
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
