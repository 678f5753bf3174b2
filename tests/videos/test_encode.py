"""Re-encoding: every frame at its time, upright, in the layered form; the same bytes every time; copies bit for bit."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from numpy.typing import NDArray

from tests.videos import hostile, videos
from tests.videos.test_decode import made
from tpn_ray.errors import BadVideo, ConfigError
from tpn_ray.videos import bitstream
from tpn_ray.videos.decode import open_video
from tpn_ray.videos.encode import EncodeConfig, Prepared, prepare_video
from tpn_ray.videos.packets import DecodeLimits
from tpn_ray.videos.source_frames import Segment

GOOD = EncodeConfig(crf=10)


def prepare(data: bytes, segment: Segment | None = None, config: EncodeConfig = GOOD) -> Prepared:
    return prepare_video(io.BytesIO(data), segment, config, DecodeLimits())


def error(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Mean difference of two frames or videos, in grey levels."""
    return float(np.abs(one.astype(np.int16) - other).mean())


def check_frames(prepared: Prepared, expected: NDArray[np.uint8]) -> None:
    """Each frame is like the one expected and unlike its neighbours."""
    got = videos.decode_all(prepared.video)
    assert len(got) == len(expected) == len(prepared.times_us)
    assert got.shape[1:3] == (prepared.height, prepared.width)
    if got.shape != expected.shape:
        return  # odd sizes are made even
    for index in range(1, len(got) - 1):
        mine = error(got[index], expected[index])
        assert mine < error(got[index], expected[index - 1])
        assert mine < error(got[index], expected[index + 1])


@pytest.mark.parametrize("name", videos.MADE)
def test_every_frame_of_every_kind_of_video(name: str) -> None:
    data, full = made(name)
    prepared = prepare(data)
    check_frames(prepared, full)
    assert prepared == prepare(data), "the same bytes every time"
    with av.open(io.BytesIO(prepared.video)) as container:
        (stream,) = container.streams
        assert stream.codec_context.name == "h264"
        stored = [round(packet.pts * stream.time_base * 1_000_000) for packet in container.demux() if packet.size]
    assert sorted(stored) == prepared.times_us
    assert prepared.times_us[0] == 0


def frame_kinds(data: bytes) -> str:
    """One letter a frame in presentation order: I, P, or b for a B-frame that nothing refers to, else B."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        length_bytes = bitstream.nal_length_bytes("h264", stream.codec_context.extradata)
        spared = {
            packet.pts: bitstream.h264_is_unreferenced(memoryview(packet), length_bytes)
            for packet in container.demux(stream)
            if packet.size
        }
        container.seek(0)
        return "".join("b" if spared[f.pts] else PictureType(f.pict_type).name for f in container.decode(stream))


@pytest.mark.parametrize("name", ["h264 all intra", "h264 B-pyramid", "mpeg4 avi"])
def test_the_layers(name: str) -> None:
    """Whatever the source's frame types: a keyframe every 32 frames, anchors every 8, nothing refers to the others."""
    kinds = frame_kinds(prepare(made(name)[0]).video)
    assert kinds.startswith("IbbbbbbbPbbbbbbbPbbbbbbbPbbbbbbPIbbbbbbbPbbb"), kinds
    kinds = frame_kinds(prepare(made(name)[0], config=EncodeConfig(gop_frames=16)).video)
    assert [at for at, kind in enumerate(kinds) if kind == "I"] == [0, 16, 32, 48]


def test_times_of_a_variable_rate_are_kept() -> None:
    prepared = prepare(made("h264 VFR")[0])
    times = [(40 * n + 17 * (n % 3) + (500 if n > 30 else 0)) * 1000 for n in range(60)]
    assert prepared.times_us == times
    assert prepared.frames_per_second == pytest.approx(59 / (times[-1] / 1e6))


@pytest.mark.parametrize(("size", "expected"), [((96, 160), (64, 106)), ((160, 96), (106, 64)), ((48, 64), (48, 64))])
def test_the_short_side(size: tuple[int, int], expected: tuple[int, int]) -> None:
    prepared = prepare(videos.encode(frames=5, size=size), config=EncodeConfig(short_side_px=64))
    assert (prepared.height, prepared.width) == expected


def test_rotated_videos_stand_upright() -> None:
    for name in ("h264 rotated 90", "h264 rotated 180", "h264 rotated 270"):
        data, full = made(name)
        prepared = prepare(data)
        assert error(videos.decode_all(prepared.video), full) < 5
        with av.open(io.BytesIO(prepared.video)) as container:
            assert next(container.decode(video=0)).rotation == 0


@pytest.mark.parametrize("colours", [{}, {"colorspace": "bt709"}, {"colorspace": "bt709", "color_range": "pc"}])
def test_colours_stay(colours: dict[str, str]) -> None:
    """A source of another colour matrix or full range comes out in the same colours."""
    marks = {"bt709": "colormatrix=bt709:colorprim=bt709:transfer=bt709", "pc": "fullrange=on"}
    options = {"x264-params": ":".join(marks[value] for value in colours.values()), "crf": "8"}
    data = videos.encode(frames=8, options=options if colours else {"crf": "8"})
    assert error(videos.decode_all(prepare(data).video), videos.decode_all(data)) < 4


def test_a_picture_that_the_encoder_does_not_take() -> None:
    with pytest.raises(BadVideo, match="stored at 20000 x 16 pixels; H.264 allows 16384 per side") as caught:
        prepare(hostile.strip())
    assert caught.value.reason == "too_large"


# --- segments

NO_SEGMENTS = {"h264 raw", "h264 avi B", "mpeg4 avi B", "hevc ts"}
"""Without times, or without a keyframe that the container can find."""


@pytest.mark.parametrize("name", videos.MADE)
def test_a_segment_has_the_frames_of_its_seconds(name: str) -> None:
    data, full = made(name)
    if name in NO_SEGMENTS:
        with pytest.raises(BadVideo):
            prepare(data, Segment(0.8, 1.6))
        return
    prepared = prepare(data, Segment(0.8, 1.6))
    if name == "h264 VFR":
        times = [40 * n + 17 * (n % 3) + (500 if n > 30 else 0) for n in range(60)]
        full = full[[n for n, time in enumerate(times) if 800 <= time < 1600]]
    else:
        full = full[20:40]
    check_frames(prepared, full)


def test_segments_that_are_not_there() -> None:
    data = made("h264")[0]
    with pytest.raises(BadVideo) as caught:
        prepare(data, Segment(60, 70))
    assert caught.value.reason == "too_short"
    assert len(prepare(data, Segment(2.2, 9)).times_us) == 5, "the video's end ends it"


# --- copies


@pytest.mark.parametrize("name", videos.MADE)
def test_copies_keep_every_pixel(name: str) -> None:
    data, full = made(name)
    copied = prepare(data, config=EncodeConfig(copy=True))
    with open_video(copied.video) as video:
        np.testing.assert_array_equal(video.frames(range(video.frame_count)), full)
    assert len(copied.times_us) == len(full)


def test_a_copy_has_no_sound() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        sound = output.add_stream("aac", rate=16000, layout="mono")
        with av.open(io.BytesIO(made("h264")[0])) as source:
            stream = source.streams.video[0]
            target = output.add_stream_from_template(stream)
            for packet in source.demux(stream):
                if packet.size:
                    packet.stream = target
                    output.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in [*sound.encode(frame), *sound.encode(None)]:
            output.mux(packet)
    copied = prepare(file.getvalue(), config=EncodeConfig(copy=True))
    with av.open(io.BytesIO(copied.video)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
    assert copied.video.index(b"moov") < copied.video.index(b"mdat"), "the index comes first"
    np.testing.assert_array_equal(videos.decode_all(copied.video), made("h264")[1])


@pytest.mark.parametrize(
    ("field", "value"),
    [("short_side_px", 255), ("gop_frames", 0), ("crf", 60.0), ("preset", "quick"), ("min_frames", 0)],
)
def test_what_cannot_be_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=str(value)):
        EncodeConfig(**{field: value})
