"""Videos for tests, made with PyAV: all frames differ, so that a wrong frame cannot pass for the right one."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray


def picture(number: int, height: int, width: int) -> NDArray[np.uint8]:
    """Frame `number`: a moving texture with a bar whose place tells the number."""
    rows, columns = np.mgrid[0:height, 0:width]
    texture = 128 + 60 * np.sin((columns + 3 * number) / 7) + 50 * np.cos((rows - 2 * number) / 5)
    frame = np.stack([texture, texture[::-1], 255 - texture], axis=-1)
    frame[: height // 8, (number * 3) % width] = 255
    whole: NDArray[np.uint8] = np.clip(frame, 0, 255).astype(np.uint8)
    return whole


def encode(
    codec: str = "libx264",
    container: str = "mp4",
    frames: int = 60,
    size: tuple[int, int] = (48, 64),
    *,
    options: dict[str, str] | None = None,
    pixel_format: str = "yuv420p",
    times: Sequence[int] | None = None,
    rotation: int = 0,
    gop: int = 12,
    b_frames: int = 0,
    container_options: dict[str, str] | None = None,
    draw: Callable[[int, int, int], NDArray[np.uint8]] = picture,
) -> bytes:
    """A video of `frames` frames of (height, width); `times` are presentation times in ms (default 40 apart)."""
    with (
        unchanged_scheduling(),
        tempfile.NamedTemporaryFile() as file,
        av.open(file.name, "w", format=container, container_options=container_options or {}) as output,
    ):
        stream = output.add_stream(codec, rate=25, options=options or {})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = *size, pixel_format
        stream.thread_count = 1
        stream.gop_size, stream.codec_context.max_b_frames = gop, b_frames
        if rotation:
            stream.set_display_rotation(rotation)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(draw(number, *size), format="rgb24")
            frame = frame.reformat(format=pixel_format)
            if times is not None:
                frame.pts = times[number]
                frame.time_base = Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        output.close()
        return Path(file.name).read_bytes()


@contextlib.contextmanager
def unchanged_scheduling() -> Iterator[None]:
    """As root, SVT-AV1 makes the thread that encodes a real-time one, and so all that this process starts later: they
    would then starve everything else on the machine."""
    if not hasattr(os, "sched_getscheduler"):  # elsewhere than on Linux
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def audio_only() -> bytes:
    """An MP4 with a sound and no picture."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16000, layout="mono")
        for start in range(0, 16000, 1024):
            tone = np.sin(np.arange(start, start + 1024) / 20).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def decode_all(data: bytes) -> NDArray[np.uint8]:
    """Every frame (t, h, w, 3) by the plainest means: what any other way must agree with."""
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        frames = [
            np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)) for frame in container.decode(stream)
        ]
    return np.stack(frames)


MADE: dict[str, Callable[[], bytes]] = {
    "h264": encode,
    "h264 B-pyramid": lambda: encode(b_frames=5, options={"x264-params": "b-adapt=0:b-pyramid=normal"}),
    "h264 non-reference B": lambda: encode(b_frames=7, gop=32, options={"x264-params": "b-adapt=0:b-pyramid=none"}),
    "h264 open GOP": lambda: encode(b_frames=3, options={"x264-params": "open-gop=1:b-adapt=0"}),
    "h264 intra refresh": lambda: encode(gop=24, options={"x264-params": "intra-refresh=1"}),
    "h264 all intra": lambda: encode(gop=1),
    "h264 one keyframe": lambda: encode(gop=250, b_frames=2),
    "h264 4:4:4": lambda: encode(pixel_format="yuv444p", b_frames=2),
    "h264 10 bit": lambda: encode(pixel_format="yuv420p10le", b_frames=2),
    "h264 odd size": lambda: encode(size=(47, 61), pixel_format="yuv444p"),
    "h264 multi slice": lambda: encode(b_frames=3, options={"x264-params": "slices=3:b-adapt=0"}),
    "h264 mkv": lambda: encode(container="matroska", b_frames=3),
    "h264 ts": lambda: encode(container="mpegts", b_frames=3),
    "h264 ts open GOP": lambda: encode(container="mpegts", b_frames=3, options={"x264-params": "open-gop=1:b-adapt=0"}),
    "h264 fragmented": lambda: encode(b_frames=3, container_options={"movflags": "frag_keyframe+empty_moov"}),
    "h264 raw": lambda: encode(container="h264", b_frames=3),
    "h264 flv": lambda: encode(container="flv", b_frames=3),
    "h264 rotated 90": lambda: encode(rotation=90, b_frames=2),
    "h264 rotated 180": lambda: encode(rotation=180),
    "h264 rotated 270": lambda: encode(rotation=270),
    "h264 VFR": lambda: encode(times=[40 * n + 17 * (n % 3) + (500 if n > 30 else 0) for n in range(60)], b_frames=2),
    "h264 avi B": lambda: encode(container="avi", b_frames=3),
    "h264 interlaced": lambda: encode(size=(64, 64), b_frames=2, options={"x264-params": "interlaced=1"}),
    "hevc": lambda: encode("libx265", b_frames=3, options={"x265-params": "log-level=error:pools=1:frame-threads=1"}),
    "hevc open GOP": lambda: encode(
        "libx265", b_frames=4, options={"x265-params": "log-level=error:open-gop=1:keyint=12:min-keyint=12:scenecut=0"}
    ),
    "hevc sub-layers": lambda: encode(
        "libx265", b_frames=4, options={"x265-params": "log-level=error:temporal-layers=2:b-adapt=0"}
    ),
    "hevc 10 bit": lambda: encode(
        "libx265", pixel_format="yuv420p10le", b_frames=3, options={"x265-params": "log-level=error"}
    ),
    "hevc ts": lambda: encode("libx265", "mpegts", b_frames=3, options={"x265-params": "log-level=error"}),
    "vp8": lambda: encode(
        "libvpx", "webm", options={"deadline": "realtime", "auto-alt-ref": "1", "lag-in-frames": "16"}
    ),
    "vp9": lambda: encode("libvpx-vp9", "webm", options={"deadline": "realtime", "cpu-used": "8"}),
    "vp9 alt-ref": lambda: encode("libvpx-vp9", "webm", options={"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "vp9 mp4": lambda: encode("libvpx-vp9", "mp4", options={"deadline": "realtime", "cpu-used": "8"}),
    "av1": lambda: encode("libsvtav1", "mp4", size=(64, 64), options={"preset": "12"}),
    "mpeg4 avi": lambda: encode("mpeg4", "avi"),
    "mpeg4 avi B": lambda: encode("mpeg4", "avi", b_frames=2),
    "mpeg4 mp4 B": lambda: encode("mpeg4", "mp4", b_frames=2),
    "mpeg2 program stream": lambda: encode("mpeg2video", "mpeg", b_frames=2),
    "msmpeg4 avi": lambda: encode("msmpeg4", "avi"),
    "wmv2 asf": lambda: encode("wmv2", "asf"),
    "mjpeg avi": lambda: encode("mjpeg", "avi", pixel_format="yuvj420p"),
    "ffv1 mkv": lambda: encode("ffv1", "matroska"),
    "gif": lambda: encode("gif", "gif", pixel_format="rgb8"),
}
"""Name -> maker: codecs, containers and structures that users' videos come in."""
