"""Files that no video should be, by kind: what each makes and the reason it must be refused with."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import av
import numpy as np

from tests.videos import videos
from tpn_ray.sandbox.process import SandboxLimits
from tpn_ray.videos.mp4 import UPRIGHT


def bomb(packets: int = 3000, height: int = 1080, width: int = 1920) -> bytes:
    """A small file that takes long to decode: one large black keyframe again and again."""
    one = videos.encode(
        frames=1,
        size=(height, width),
        options={"preset": "ultrafast"},
        draw=lambda _, h, w: np.zeros((h, w, 3), np.uint8),
    )
    file = io.BytesIO()
    with av.open(io.BytesIO(one)) as source, av.open(file, "w", format="mp4") as output:
        stream = source.streams.video[0]
        data = bytes(next(packet for packet in source.demux(stream) if packet.size))
        target = output.add_stream_from_template(stream, opaque=True)
        for number in range(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.is_keyframe = target, stream.time_base, True
            packet.pts = packet.dts = number * 512
            packet.duration = 512
            output.mux(packet)
    return file.getvalue()


def colours() -> bytes:
    """A video whose colours are stored in a way that FFmpeg does not convert."""
    return videos.encode(options={"x264-params": "colormatrix=YCgCo"})


def false_length() -> bytes:
    """A Matroska that announces an hour and holds two seconds."""
    data = bytearray(videos.encode(container="matroska"))
    at = data.index(b"\x44\x89\x88")  # Duration, 8 bytes of float, in milliseconds
    data[at + 3 : at + 11] = np.array([3_600_000.0], dtype=">f8").tobytes()
    tag = data.index(b"00:00:02.400000000")
    data[tag : tag + 8] = b"01:00:00"
    return bytes(data)


def flipped(data: bytes, begin: int) -> bytes:
    """The file with 20 bits turned over after byte `begin`."""
    random, damaged = np.random.default_rng(1), bytearray(data)
    for place in random.integers(begin, len(data), 20):
        damaged[place] ^= 1 << int(random.integers(8))
    return bytes(damaged)


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def no_frames() -> bytes:
    """An MP4 whose video stream was opened and never written to."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4", container_options={"movflags": "empty_moov+frag_keyframe"}) as output:
        stream = output.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        output.start_encoding()
    return file.getvalue()


def shared_samples(samples: int = 50, sample_bytes: int = 1 << 20) -> bytes:
    """A small MP4 whose many frames are all the same bytes: the frames together are far larger than the file."""

    def box(kind: bytes, *content: bytes) -> bytes:
        body = b"".join(content)
        return struct.pack(">I4s", 8 + len(body), kind) + body

    def full(kind: bytes, *content: bytes) -> bytes:
        return box(kind, bytes(4), *content)

    ftyp = box(b"ftyp", b"isom\0\0\0\0isom")
    parameters = box(b"avcC", bytes.fromhex("0142c00affe100046742c00a010004") + b"68ce")
    entry = struct.pack(">I4s", 86 + len(parameters), b"avc1") + bytes(6) + b"\0\1" + bytes(16)
    entry += struct.pack(">HH", 64, 48) + bytes(50) + parameters

    def moov(offset: int) -> bytes:
        stbl = box(
            b"stbl",
            full(b"stsd", struct.pack(">I", 1), entry),
            full(b"stts", struct.pack(">III", 1, samples, 512)),
            full(b"stsc", struct.pack(">IIII", 1, 1, 1, 1)),
            full(b"stsz", struct.pack(">II", 0, samples), struct.pack(">I", sample_bytes) * samples),
            full(b"stco", struct.pack(">I", samples), struct.pack(">I", offset) * samples),
        )
        mdia = box(
            b"mdia",
            full(b"mdhd", struct.pack(">IIII", 0, 0, 12800, samples * 512)),
            full(b"hdlr", bytes(4), b"vide", bytes(13)),
            box(b"minf", stbl),
        )
        tkhd = full(b"tkhd", bytes(36), UPRIGHT, struct.pack(">II", 64 << 16, 48 << 16))
        mvhd = full(b"mvhd", struct.pack(">IIII", 0, 0, 1000, samples * 40), bytes(80))
        return box(b"moov", mvhd, box(b"trak", tkhd, mdia))

    begin = len(ftyp) + len(moov(0)) + 8
    return ftyp + moov(begin) + box(b"mdat", bytes(sample_bytes))


def strip() -> bytes:
    """A video so wide that no H.264 encoder takes it, with few pixels."""
    return videos.encode(
        "ffv1", "matroska", frames=5, size=(16, 20_000), draw=lambda n, h, w: np.full((h, w, 3), n, np.uint8)
    )


FASTSTART = {"movflags": "faststart"}

HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.mp4": (lambda: b"", "empty"),
    "garbage.mp4": (lambda: np.random.default_rng(0).bytes(20_000), "not_video"),
    "page.mp4": (lambda: b"<!DOCTYPE html><html><body>404</body></html>" * 50, "not_video"),
    "playlist.mp4": (lambda: b"#EXTM3U\n#EXTINF:3,\n/etc/passwd\n#EXT-X-ENDLIST\n", "not_video"),
    "sound.mp4": (videos.audio_only, "not_video"),
    "no_frames.mp4": (no_frames, "no_picture"),
    "index_lost.mp4": (lambda: half(videos.encode()), "truncated"),
    "index_kept.mp4": (lambda: half(videos.encode(container_options=FASTSTART)), "truncated"),
    "cut.mkv": (lambda: half(videos.encode(container="matroska")), "truncated"),
    "cut.avi": (lambda: half(videos.encode("mpeg4", "avi")), "truncated"),
    "false_length.mkv": (false_length, "truncated"),
    "flipped.mp4": (lambda: flipped(videos.encode(b_frames=2, container_options=FASTSTART), 3000), "damaged"),
    "flipped.mkv": (lambda: flipped(videos.encode(container="matroska", b_frames=2), 1000), "damaged"),
    "colours.mp4": (colours, "no_picture"),
    "short.mp4": (lambda: videos.encode(frames=2), "too_short"),
    "huge.mp4": (lambda: videos.encode(frames=5, size=(1088, 1930)), "too_large"),
    "strip.mkv": (strip, "too_large"),
    "bomb.mp4": (bomb, "timeout"),
}
"""File name -> (maker, reason), within LIMITS."""

LIMITS = SandboxLimits(cpu_seconds=2, max_pixels=1920 * 1080)
