"""A video's container: safe opening, reading packets, indexing frames. Runs anywhere; decodes nothing."""

from __future__ import annotations

import bisect
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import av
from av.codec.context import ThreadType
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from tpn_ray.errors import BadVideo, ConfigError
from tpn_ray.videos import bitstream

FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,ivf,h264,hevc,m4v,mjpeg,nut,mxf,dv,rm,obu"
"""Demuxers that FFmpeg may use: frame containers, but no playlists (hls, concat, dash), which refer to other files."""


@dataclass(frozen=True, kw_only=True)
class DecodeLimits:
    """Limits on what a video may cost; exceeding them raises BadVideo("too_large") or BadVideo("timeout")."""

    max_bytes: int = 2**30
    """Maximum file size, in bytes."""

    max_pixels: int = 8192 * 4320
    """Maximum frame size: height times width, in pixels."""

    max_frames: int = 200_000
    """Maximum number of frames in the video."""

    max_seconds: float = 60.0
    """Maximum CPU time of one call; CPU time, so that the result does not depend on whether the machine is busy or
    paused. It is checked between packets: code that hangs inside a decoder needs a process that can be killed
    (`tpn_ray.sandbox.process`)."""

    def __post_init__(self) -> None:
        for field in ("max_bytes", "max_pixels", "max_frames", "max_seconds"):
            if getattr(self, field) <= 0:
                raise ConfigError(f"{field} is {getattr(self, field)}; it must be above 0")


class CpuLimit:
    """The limit on the calling thread's CPU time in one call."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.restart()

    def restart(self) -> None:
        """Start a new call."""
        self._end = time.thread_time() + self._seconds

    def check(self) -> None:
        """Raise BadVideo("timeout") if the time is up."""
        if time.thread_time() > self._end:
            raise BadVideo("timeout", f"decoding took more than {self._seconds:g} s of CPU time")


# --- the index


@dataclass(frozen=True)
class FrameIndex:
    """Where the frames are, in presentation order."""

    times: list[int]
    """Presentation time of each frame, ascending, in the stream's unit."""

    packets: list[int]
    """Position of each frame's packet in decoding order."""

    key_times: list[int]
    """Presentation time of each keyframe, ascending."""

    key_packets: list[int]
    """Position of each keyframe's packet in decoding order."""

    def runs(self, wanted: list[int]) -> Iterator[tuple[int, list[int]]]:
        """Yield (first packet, wanted frames decoded from there); a new run starts where a keyframe saves packets."""
        begin, end, run = 0, -1, list[int]()
        for index in wanted:
            key = self._key_before(index)
            if run and key <= end + 1:
                run.append(index)
                begin = min(begin, key)  # smaller only if a damaged file's times contradict its order
            else:
                if run:
                    yield begin, run
                begin, run = key, [index]
            end = max(end, self.packets[index])
        yield begin, run

    def _key_before(self, index: int) -> int:
        """Return the packet of the last keyframe before frame `index` in both presentation and decoding order."""
        nearest = bisect.bisect_right(self.key_times, self.times[index]) - 1
        while nearest >= 0 and self.key_packets[nearest] > self.packets[index]:
            nearest -= 1
        return self.key_packets[nearest] if nearest >= 0 else 0


def frame_index(
    packets: list[Packet[VideoStream]], stream: VideoStream, codec: str, nal_length_bytes: int, clock: CpuLimit
) -> FrameIndex | None:
    """Build the index from the packets' times; None if they are missing, not distinct, or guesses."""
    if stream.container.format.name == "avi" and stream.codec_context.has_b_frames:
        return None  # AVI stores no times: with B-frames the demuxer guesses, and gets them wrong
    keys = list[tuple[int, int]]()
    for at, packet in enumerate(packets):
        if packet.is_keyframe and packet.pts is not None:
            clock.check()
            if codec != "h264" or bitstream.h264_starts_afresh(memoryview(packet), nal_length_bytes):
                keys.append((packet.pts, at))
    keys = [key for number, key in enumerate(keys) if number == 0 or key[0] > keys[number - 1][0]]
    shown: list[tuple[int, int]] = []
    for at, packet in enumerate(packets):
        # An edit list marks packets that are not shown; VP8 keeps hidden frames in packets of their own.
        if packet.is_discard or (codec == "vp8" and not bitstream.vp8_is_shown(memoryview(packet))):
            continue
        if packet.pts is None:
            return None
        # In a stream cut out of a longer one, packets before the first keyframe cannot be decoded.
        if not keys or packet.pts >= keys[0][0]:
            shown.append((packet.pts, at))
    shown.sort()
    times = [moment for moment, _ in shown]
    if len(set(times)) < len(times):
        return None
    if not times:
        raise BadVideo("no_picture", f"none of {len(packets)} packets holds a frame that is shown")
    return FrameIndex(times, [at for _, at in shown], [moment for moment, _ in keys], [at for _, at in keys])


# --- the container


def open_container(data: bytes, limits: DecodeLimits) -> InputContainer:
    """Open a demuxer over bytes in memory, which can open nothing else."""
    if not data:
        raise BadVideo("empty", "the file has no bytes")
    if len(data) > limits.max_bytes:
        raise BadVideo("too_large", f"the file has {len(data)} bytes, the limit is {limits.max_bytes}")
    try:
        return open_file(io.BytesIO(data), limits)
    except BadVideo as error:
        announced = bitstream.announced_bytes(data)
        if announced > len(data):
            raise BadVideo("truncated", f"the file has {len(data)} of {announced} bytes") from error
        raise


def open_file(file: BinaryIO, limits: DecodeLimits) -> InputContainer:
    """Open a demuxer over an open file, which can open nothing else: for sources too long to hold in memory."""
    # FFmpeg gets a file object and may use no protocol or demuxer that could open anything else.
    options = {"protocol_whitelist": "none", "format_whitelist": FORMATS, "max_pixels": str(limits.max_pixels)}
    try:
        return av.open(file, mode="r", options=options, io_open=_refuse_to_open, metadata_errors="replace")
    except (av.FFmpegError, ValueError, OSError) as error:
        raise BadVideo("not_video", f"no known container of video: {said(error)}") from error


def _refuse_to_open(url: str, flags: int, options: dict[str, str]) -> Any:
    raise PermissionError(f"a video may not open {url!r}")


def video_stream(container: InputContainer, limits: DecodeLimits, *, strict: bool = True) -> VideoStream:
    """Choose the video stream as the ffmpeg tool does: the one marked as default, then the largest, then the first.

    The other streams are not read, and cover pictures do not count as videos. A strict decoder rejects damage; a
    lenient one conceals it with earlier content. Raises BadVideo if there is no video stream.
    """
    videos = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    videos.sort(key=lambda stream: (not stream.disposition & Disposition.default, -_picture_px(stream)))
    if not videos:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "none"
        raise BadVideo("not_video", f"there is no video stream in it; streams: {kinds}")
    if videos[0].codec_context is None:
        raise BadVideo("no_picture", "its video codec is not known")
    for stream in container.streams:
        if stream.index != videos[0].index:
            stream.discard = Discard.all
    configure(videos[0].codec_context, limits, strict=strict)
    return videos[0]


def _picture_px(stream: VideoStream) -> int:
    context = stream.codec_context
    return context.width * context.height if context is not None else 0


def configure(context: VideoCodecContext, limits: DecodeLimits, *, strict: bool) -> None:
    """Apply the settings that every decoder shares."""
    context.thread_count = 1
    context.thread_type = ThreadType.NONE
    # The limit must also hold for sizes given inside the stream.
    context.options = {"max_pixels": str(limits.max_pixels)} | ({"err_detect": "explode"} if strict else {})


def read_packets(
    container: InputContainer, stream: VideoStream, limits: DecodeLimits, clock: CpuLimit
) -> list[Packet[VideoStream]]:
    """Read all packets of the stream, in decoding order, which holds the compressed video in memory once more."""
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > limits.max_pixels:
        raise BadVideo("too_large", f"a frame has {width} x {height} pixels, the limit is {limits.max_pixels}")
    packets: list[Packet[VideoStream]] = []
    held = 0
    try:
        for packet in container.demux(stream):
            clock.check()
            held += packet.size
            if held > limits.max_bytes:  # an index may name the same bytes again and again
                raise BadVideo("too_large", f"its frames have more than {limits.max_bytes} bytes together")
            if packet.size == 0 and packet.dts is None and packet.pos is None:
                break  # the end marker; after it PyAV fails on streams that appeared on the way
            if packet.size > 0:
                packets.append(packet)
            if len(packets) > limits.max_frames:
                raise BadVideo("too_large", f"it has more than {limits.max_frames} frames")
    except av.FFmpegError as error:
        raise BadVideo("damaged", f"the container is damaged: {said(error)}") from error
    if not packets:
        raise BadVideo("no_picture", f"its video stream of {width} x {height} pixels holds no frame")
    return packets


def refuse_cut(data: bytes, packets: list[Packet[VideoStream]]) -> None:
    """Raise BadVideo("truncated") for a file shorter than it claims to be."""
    announced = bitstream.announced_bytes(data)
    if announced > len(data):
        raise BadVideo("truncated", f"the file has {len(data)} of {announced} bytes and {len(packets)} frames")


def said(error: BaseException) -> str:
    """Return FFmpeg's message without its error number."""
    return getattr(error, "strerror", None) or str(error).partition(":")[0]
