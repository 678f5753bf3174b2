"""The tables of an MP4 say what FFmpeg's demuxer says, or nothing."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from tests.videos import videos
from tpn_ray.videos.mp4 import read_track

PLAIN = [
    "h264",
    "h264 B-pyramid",
    "h264 non-reference B",
    "h264 open GOP",
    "h264 intra refresh",
    "h264 4:4:4",
    "h264 VFR",
    "hevc",
    "hevc open GOP",
]


@pytest.mark.parametrize("name", PLAIN)
def test_the_tables_are_what_the_demuxer_reads(name: str) -> None:
    data = videos.MADE[name]()
    track = read_track(data)
    assert track is not None
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert track.codec == stream.codec_context.name
        assert track.extradata == stream.codec_context.extradata
        assert (track.width, track.height) == (stream.codec_context.width, stream.codec_context.height)
        assert track.tick_seconds == stream.time_base
    assert track.times.tolist() == [packet.pts for packet in packets]
    assert track.keys.tolist() == [packet.is_keyframe for packet in packets]
    for packet, begin, size in zip(packets, track.offsets.tolist(), track.sizes.tolist(), strict=True):
        assert data[begin : begin + size] == bytes(packet)


@pytest.mark.parametrize(
    "name", ["h264 fragmented", "h264 rotated 90", "h264 mkv", "h264 ts", "vp9 mp4", "mpeg4 mp4 B"]
)
def test_what_is_not_plain_is_left_to_ffmpeg(name: str) -> None:
    assert read_track(videos.MADE[name]()) is None


def test_colours_that_the_container_names_are_read() -> None:
    track = read_track(videos.encode(options={"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709"}))
    assert track is not None
    assert track.colour in (None, (1, 1, 1, 0))


def test_frames_hidden_by_an_edit_list_are_left_to_ffmpeg() -> None:
    assert read_track(videos.encode(b_frames=2, times=[n * 40 - 400 for n in range(60)])) is None


def test_damaged_tables_are_left_to_ffmpeg() -> None:
    data = videos.encode(b_frames=2, container_options={"movflags": "faststart"})
    begin, end = data.index(b"moov"), data.index(b"mdat")
    random = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[random.integers(begin, end)] = random.integers(256)
        track = read_track(bytes(damaged))
        if track is not None:  # the byte did not matter to the tables, or only changed a number in them
            assert (track.offsets >= 0).all()
            assert (track.offsets + track.sizes <= len(damaged)).all()
