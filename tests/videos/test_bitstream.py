"""What packets and files tell without decoding, on bytes written out by hand."""

from __future__ import annotations

import pytest

from tests.videos import videos
from tpn_ray.videos import bitstream


def units(*payloads: bytes, length_bytes: int = 4) -> bytes:
    if length_bytes == 0:
        return b"".join(b"\0\0\0\1" + payload for payload in payloads)
    return b"".join(len(payload).to_bytes(length_bytes, "big") + payload for payload in payloads)


SEI, REFERENCED, UNREFERENCED, IDR = b"\x06abc", b"\x41\x9aslice", b"\x01\x9eslice", b"\x65\x88slice"


@pytest.mark.parametrize("length_bytes", [0, 2, 4])
def test_h264_unreferenced(length_bytes: int) -> None:
    def unreferenced(*payloads: bytes) -> bool:
        return bitstream.h264_is_unreferenced(units(*payloads, length_bytes=length_bytes), length_bytes)

    assert unreferenced(UNREFERENCED)
    assert unreferenced(SEI, UNREFERENCED, UNREFERENCED)
    assert not unreferenced(REFERENCED)
    assert not unreferenced(UNREFERENCED, REFERENCED)
    assert not unreferenced(IDR)
    assert not unreferenced(SEI)
    assert not bitstream.h264_is_unreferenced(b"", length_bytes)


def test_h264_where_decoding_may_begin() -> None:
    assert bitstream.h264_is_idr(units(SEI, IDR), 4)
    assert bitstream.h264_starts_afresh(units(SEI, IDR), 4)
    assert bitstream.h264_starts_afresh(units(b"\x41\x88\x80\x00"), 4)  # first macroblock 0, slice type 7: I
    assert not bitstream.h264_starts_afresh(units(b"\x41\x9a\x80\x00"), 4)  # slice type 5: P


def test_hevc_sublayers() -> None:
    def sublayer(kind: int, temporal: int) -> tuple[int, bool] | None:
        return bitstream.hevc_sublayer(units(bytes([kind << 1, temporal + 1, 0, 0])), 4)

    assert sublayer(0, 0) == (0, True)  # TRAIL_N
    assert sublayer(1, 0) == (0, False)  # TRAIL_R
    assert sublayer(8, 2) == (2, True)  # RASL_N
    assert sublayer(19, 0) == (0, False)  # IDR
    assert sublayer(32, 0) is None  # a parameter set


def test_nal_lengths() -> None:
    assert bitstream.nal_length_bytes("h264", bytes([1, 100, 0, 30, 0xFF, 0xE1])) == 4
    assert bitstream.nal_length_bytes("h264", bytes([1, 100, 0, 30, 0xFD, 0xE1])) == 2
    assert bitstream.nal_length_bytes("h264", b"\0\0\0\1\x67abcd") == 0
    assert bitstream.nal_length_bytes("h264", None) == 0
    assert bitstream.nal_length_bytes("vp9", b"anything at all here") == 0


def test_a_length_beyond_the_packet_ends_the_walk() -> None:
    assert list(bitstream.nal_units(b"\xff\xff\xff\xff\x41", 4)) == [4]
    assert list(bitstream.nal_units(b"\0\0\0\0" * 5, 4)) == [4, 8, 12, 16]
    assert list(bitstream.nal_units(b"\0\0\1", 0)) == []


@pytest.mark.parametrize(
    ("codec", "container"),
    [("libx264", "mp4"), ("libx264", "mov"), ("mpeg4", "avi"), ("libvpx", "webm"), ("libx264", "matroska")],
)
def test_announced_bytes_are_the_file(codec: str, container: str) -> None:
    data = videos.encode(codec, container, frames=10)
    announced = bitstream.announced_bytes(data)
    assert 0 < announced <= len(data)
    assert bitstream.announced_bytes(data[: len(data) * 2 // 3]) > len(data) * 2 // 3


def test_files_that_announce_nothing() -> None:
    assert bitstream.announced_bytes(videos.encode(container="mpegts", frames=5)) == 0
    assert bitstream.announced_bytes(b"") == 0
    assert bitstream.announced_bytes(b"\x1a\x45\xdf\xa3") == 0
