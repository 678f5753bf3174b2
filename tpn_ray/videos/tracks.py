"""A video's packets and their decoders, by one of two ways with the same result. Runs anywhere; decodes nothing.

`TableTrack` reads the tables of a plain MP4 itself, which is many times faster; `DemuxedTrack` has FFmpeg read any
container. Either way, the packets hold the same bytes with the same times.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Protocol

import av
import numpy as np
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from tpn_ray.videos import bitstream, mp4, packets
from tpn_ray.videos.bitstream import Payload
from tpn_ray.videos.mp4 import Mp4Track
from tpn_ray.videos.packets import CpuLimit, DecodeLimits, FrameIndex


class Track(Protocol):
    """One video stream."""

    codec: str
    nal_length_bytes: int
    index: FrameIndex | None
    """Where the frames are; None for a file without usable times."""
    first_key: int
    """The first packet flagged as a keyframe, where plain decoding starts: the packets before it lack their
    references."""
    tick_seconds: Fraction | None
    frames_per_second: Fraction | None

    def __len__(self) -> int:
        """Return the number of packets."""

    def packet(self, at: int) -> Packet[VideoStream]:
        """Return packet `at` in decoding order."""

    def payload(self, at: int) -> Payload:
        """Return the bytes of packet `at`."""

    def time(self, at: int) -> int | None:
        """Return the presentation time of packet `at` in ticks."""

    def is_key(self, at: int) -> bool:
        """Return whether the container flags packet `at` as a keyframe."""

    def at_a_glance(self) -> list[bool | None]:
        """Return for each packet whether its frame is unreferenced; None where a quick scan cannot tell."""

    def decoder(self, *, strict: bool) -> VideoCodecContext:
        """Return a decoder that rejects damage (strict) or conceals it."""

    def close(self) -> None:
        """Free the decoders and the packets."""


def open_track(data: bytes, limits: DecodeLimits, clock: CpuLimit) -> Track:
    """Open the first video stream. Raises BadVideo with the reason if none can be used."""
    track = mp4.read_track(data) if len(data) <= limits.max_bytes else None
    if track and len(track.sizes) <= limits.max_frames and track.width * track.height <= limits.max_pixels:
        clock.check()
        return TableTrack(data, track, limits)
    return DemuxedTrack(data, limits, clock)


class TableTrack:
    """Packets located by the tables of an MP4."""

    def __init__(self, data: bytes, track: Mp4Track, limits: DecodeLimits) -> None:
        self._view, self._track, self._limits = memoryview(data), track, limits
        self.codec = track.codec
        self.nal_length_bytes = bitstream.nal_length_bytes(track.codec, track.extradata)
        self._begins, self._sizes, self._times = track.offsets.tolist(), track.sizes.tolist(), track.times.tolist()
        self.tick_seconds: Fraction | None = track.tick_seconds
        seconds = track.duration_ticks * track.tick_seconds
        self.frames_per_second: Fraction | None = len(self) / seconds if seconds else None
        keys = np.flatnonzero(track.keys)
        self.first_key = int(keys[0]) if len(keys) else 0
        self.index: FrameIndex | None = self._index(keys.tolist())
        self._decoders: dict[bool, VideoCodecContext] = {}

    def _index(self, flagged: list[int]) -> FrameIndex | None:
        keys = list[int]()
        for at in flagged:
            afresh = self.codec != "h264" or bitstream.h264_starts_afresh(self.payload(at), self.nal_length_bytes)
            if afresh and (not keys or self._times[at] > self._times[keys[-1]]):
                keys.append(at)
        order = np.argsort(self._track.times, kind="stable")
        times = self._track.times[order]
        if keys:
            shown = times >= self._times[keys[0]]
            order, times = order[shown], times[shown]
        if (np.diff(times) == 0).any():
            return None
        return FrameIndex(times.tolist(), order.tolist(), [self._times[at] for at in keys], keys)

    def __len__(self) -> int:
        return len(self._sizes)

    def packet(self, at: int) -> Packet[VideoStream]:
        packet: Packet[VideoStream] = Packet(bytes(self.payload(at)))  # type: ignore[assignment]
        packet.pts = self._times[at]
        return packet

    def payload(self, at: int) -> Payload:
        return self._view[self._begins[at] : self._begins[at] + self._sizes[at]]

    def time(self, at: int) -> int | None:
        return int(self._times[at])

    def is_key(self, at: int) -> bool:
        return bool(self._track.keys[at])

    def at_a_glance(self) -> list[bool | None]:
        """Scan H.264 packets of a single slice, which covers most of the unreferenced frames."""
        if self.codec != "h264" or self.nal_length_bytes != 4:
            return [None] * len(self)
        data, begins = np.frombuffer(self._view, dtype=np.uint8), self._track.offsets
        known = np.full(len(self), None, dtype=object)
        large = self._track.sizes > 4
        heads = data[begins[large, None] + np.arange(5)].astype(np.int64)
        length = heads[:, :4] @ np.array([1 << 24, 1 << 16, 1 << 8, 1])
        alone = (length == self._track.sizes[large] - 4) & (heads[:, 4] & 0x1F == 1)
        known[np.flatnonzero(large)[alone]] = heads[alone, 4] & 0x60 == 0
        return list(known)

    def decoder(self, *, strict: bool) -> VideoCodecContext:
        if strict not in self._decoders:
            context = av.CodecContext.create(self.codec, "r")
            assert isinstance(context, VideoCodecContext)
            context.extradata = self._track.extradata
            if self._track.colour:
                context.color_primaries, context.color_trc, context.colorspace, full = self._track.colour
                context.color_range = 2 if full else 1
            packets.configure(context, self._limits, strict=strict)
            # A stream that does not state its reordering depth: assume the maximum instead of guessing first.
            context.options = {**context.options, "strict": "1"}
            self._decoders[strict] = context
        return self._decoders[strict]

    def close(self) -> None:
        self._decoders.clear()


class DemuxedTrack:
    """All packets from FFmpeg's demuxer, read at once."""

    def __init__(self, data: bytes, limits: DecodeLimits, clock: CpuLimit) -> None:
        self._data, self._limits = data, limits
        self._container = packets.open_container(data, limits)
        try:
            self._stream = packets.video_stream(self._container, limits)
            self._packets = packets.read_packets(self._container, self._stream, limits, clock)
            packets.refuse_cut(data, self._packets)
            self.codec = self._stream.codec_context.name
            self.nal_length_bytes = bitstream.nal_length_bytes(self.codec, self._stream.codec_context.extradata)
            self.index: FrameIndex | None = packets.frame_index(
                self._packets, self._stream, self.codec, self.nal_length_bytes, clock
            )
        except BaseException:
            self._container.close()
            raise
        self.first_key = next((at for at, packet in enumerate(self._packets) if packet.is_keyframe), 0)
        self.tick_seconds = self._stream.time_base
        self.frames_per_second = self._stream.average_rate or self._stream.guessed_rate
        self._lenient: VideoStream | None = None

    def __len__(self) -> int:
        return len(self._packets)

    def packet(self, at: int) -> Packet[VideoStream]:
        return self._packets[at]

    def payload(self, at: int) -> Payload:
        return memoryview(self._packets[at])

    def time(self, at: int) -> int | None:
        return self._packets[at].pts

    def is_key(self, at: int) -> bool:
        return self._packets[at].is_keyframe

    def at_a_glance(self) -> list[bool | None]:
        return [None] * len(self)

    def decoder(self, *, strict: bool) -> VideoCodecContext:
        if strict:
            return self._stream.codec_context
        if self._lenient is None:
            again = packets.open_container(self._data, self._limits)
            self._lenient = packets.video_stream(again, self._limits, strict=False)
        return self._lenient.codec_context

    def close(self) -> None:
        self._packets = []
        self._container.close()
        if self._lenient:
            self._lenient.container.close()
