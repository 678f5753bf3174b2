"""Yields the frames of a stored video, or of a segment of a long one, one by one. Runs in a sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from tpn_ray.errors import BadVideo
from tpn_ray.videos import bitstream, packets
from tpn_ray.videos.decode import open_video
from tpn_ray.videos.packets import DecodeLimits

HEADERS_WITH_LENGTH = ("mov", "matroska", "avi", "flv", "asf")
"""Containers whose header states the length of the video; for others, FFmpeg guesses it."""


@dataclass(frozen=True)
class Segment:
    """A part of a longer video: frames with start <= time < end."""

    start_seconds: float
    end_seconds: float


TimedFrames = Iterator[tuple[int, VideoFrame, Fraction]]
"""(time in ticks, frame as decoded, seconds per tick) in presentation order."""


def whole_frames(data: bytes, limits: DecodeLimits) -> TimedFrames:
    """Yield every frame of a video in memory. Raises BadVideo unless each can be decoded."""
    with open_video(data, limits) as video:
        for ticks, frame in video.all_frames():
            yield ticks, frame, video.tick_seconds


def segment_frames(source: BinaryIO, segment: Segment, limits: DecodeLimits) -> TimedFrames:
    """Yield the frames of a segment, starting at the keyframe before it; the file may be too long for memory."""
    with packets.open_file(source, limits) as container:
        stream = packets.video_stream(container, limits)
        if stream.time_base is None:
            raise BadVideo("damaged", "the video has no time base, so no segment can be cut out of it")
        if container.format.name == "avi" and stream.codec_context.has_b_frames:
            raise BadVideo("damaged", "an AVI with B-frames has no times, so no segment can be cut out of it")
        origin = stream.start_time or 0
        begin = origin + round(Fraction(segment.start_seconds) / stream.time_base)
        end = origin + round(Fraction(segment.end_seconds) / stream.time_base)
        found = _packets_between(container, stream, begin, end, limits)
        wanted = {packet.pts for packet in found if packet.pts is not None and begin <= packet.pts < end}
        for frame in _decode(found, stream, source, limits):
            if frame.pts in wanted:
                wanted.discard(frame.pts)
                yield frame.pts, frame, stream.time_base
        if wanted:
            raise BadVideo("damaged", f"{len(wanted)} frames of the segment were not decoded")


def _packets_between(
    container: InputContainer, stream: VideoStream, begin: int, end: int, limits: DecodeLimits
) -> list[Packet[VideoStream]]:
    """Read from the last keyframe at or before `begin` to the last packet that a frame before `end` can need."""
    try:
        container.seek(begin, stream=stream, backward=True)
        found = _packets_before(container, stream, end, limits)
        if not found or found[0].pts is None or found[0].pts > begin or not found[0].is_keyframe:
            # The seek table is wrong or missing.
            container.seek(stream.start_time or 0, stream=stream, backward=True)
            found = _packets_before(container, stream, end, limits)
    except av.FFmpegError as error:
        raise BadVideo("damaged", f"no segment can be read from its container: {packets.said(error)}") from error
    if not found:
        raise BadVideo("too_short", "the video ends before the segment begins")
    return found


def _packets_before(
    container: InputContainer, stream: VideoStream, end: int, limits: DecodeLimits
) -> list[Packet[VideoStream]]:
    """Read from the current position to the first packet that is decoded at or after `end`, which is left out."""
    found: list[Packet[VideoStream]] = []
    for packet in container.demux(stream):
        if packet.size > 0:
            if packet.dts is not None and packet.dts >= end:
                break
            found.append(packet)
        if len(found) > limits.max_frames:
            raise BadVideo("too_large", f"the segment has more than {limits.max_frames} frames")
    return found


def _decode(
    found: list[Packet[VideoStream]], stream: VideoStream, source: BinaryIO, limits: DecodeLimits
) -> Iterator[VideoFrame]:
    context = stream.codec_context
    length_bytes = bitstream.nal_length_bytes(context.name, context.extradata)
    if context.name == "h264" and not bitstream.h264_is_idr(memoryview(found[0]), length_bytes):
        # As in decode.py: a strict decoder rejects an open GOP that is entered in its middle.
        source.seek(0)
        with packets.open_file(source, limits) as again:
            yield from _decoded(found, packets.video_stream(again, limits, strict=False).codec_context)
    else:
        yield from _decoded(found, context)


def _decoded(found: list[Packet[VideoStream]], context: VideoCodecContext) -> Iterator[VideoFrame]:
    try:
        for packet in found:
            yield from context.decode(packet)
        yield from context.decode(None)
    except av.FFmpegError as error:
        raise BadVideo("damaged", f"the {context.name} decoder refused a packet: {packets.said(error)}") from error


def refuse_false_length(data: bytes, limits: DecodeLimits) -> None:
    """Raise BadVideo("truncated") if the header announces clearly more seconds or frames than the file holds.

    A tenth and half a second of time, or a tenth and two frames, are tolerated: the last frame's duration and hidden
    frames make headers inexact. MP4 counts its frames one by one, so it can only be wrong about the seconds.
    """
    with packets.open_container(data, limits) as container:
        stream = packets.video_stream(container, limits)
        if not container.format.name.startswith(HEADERS_WITH_LENGTH) or stream.time_base is None:
            return
        found = packets.read_packets(container, stream, limits, packets.CpuLimit(limits.max_seconds))
        spans = [(packet.pts, packet.pts + (packet.duration or 0)) for packet in found if packet.pts is not None]
        announced_seconds = _announced_seconds(container, stream)
        if stream.frames > 1.1 * len(found) + 2:
            raise BadVideo("truncated", f"the file announces {stream.frames} frames and holds {len(found)}")
        if not spans or announced_seconds is None:
            return
        held = float((max(end for _, end in spans) - min(begin for begin, _ in spans)) * stream.time_base)
        if announced_seconds > 1.1 * held + 0.5:
            raise BadVideo("truncated", f"the file announces {announced_seconds:.2f} s, its frames span {held:.2f} s")


def _announced_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """Return the announced length of this stream; that of the whole file only if it holds nothing else."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if len(container.streams) == 1 and container.duration is not None:
        return container.duration / 1_000_000
    return None
