"""Reads the sample tables of a plain MP4 straight from its bytes. Pure; runs anywhere.

FFmpeg reads a file in many small calls and decodes part of it to probe its contents, which costs as much as several
frames of a clip. The tables (ISO/IEC 14496-12, 8.6 and 8.7) say where each frame's bytes are and when it is shown. Only
unambiguous files are read here: one upright H.264 or HEVC track, not fragmented, shown from its first frame to its
last. For everything else `read_track` returns None, and FFmpeg takes over.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]

CODECS = {b"avc1": ("h264", b"avcC"), b"hvc1": ("hevc", b"hvcC"), b"hev1": ("hevc", b"hvcC")}
"""Sample entry -> codec and the box with its parameter sets."""

KNOWN_IN_ENTRY = {b"avcC", b"hvcC", b"colr", b"pasp", b"btrt", b"fiel"}
"""Boxes that may occur in a sample entry. Others may change the picture: cropping, a second view, encryption."""

ENTRY_BYTES = 86
"""Size of the fixed part of a visual sample entry, including its box header."""

UPRIGHT = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


@dataclass(frozen=True)
class Mp4Track:
    """The frames of a video track in decoding order."""

    codec: str
    extradata: bytes
    width: int
    height: int
    tick_seconds: Fraction
    offsets: Int64Array
    sizes: Int64Array
    times: Int64Array
    """Presentation times in ticks; with an edit list the first frame shown has 0, as in FFmpeg."""
    keys: NDArray[np.bool_]
    duration_ticks: int
    colour: tuple[int, int, int, int] | None
    """Primaries, transfer, matrix (ISO/IEC 23091-2), and whether the range is full; None if the container does not
    say."""


def read_track(data: bytes) -> Mp4Track | None:
    """Return the only video track, or None if FFmpeg has to read the file."""
    if data[4:8] != b"ftyp":
        return None
    try:
        top = _boxes(data, 0, len(data))
        moov = _boxes(data, *top[b"moov"])
        if b"moof" in top or b"mvex" in moov or b"trak" not in moov:
            return None
        traks = [(begin, end) for kind, begin, end in _walk(data, *top[b"moov"]) if kind == b"trak"]
        videos = [trak for trak in traks if _handler(data, *trak) == b"vide"]
        return _track(data, moov, *videos[0]) if len(videos) == 1 else None
    except (KeyError, IndexError, ValueError, struct.error, OverflowError, ZeroDivisionError):
        return None


def _walk(data: bytes, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, first byte of the content, end) of each box between two offsets."""
    at = begin
    while at + 8 <= end:
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        head = 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if size < head or at + size > end:
            raise ValueError(f"a box of {size} bytes at {at}")
        yield kind, at + head, at + size
        at += size


def _boxes(data: bytes, begin: int, end: int) -> dict[bytes, tuple[int, int]]:
    return {kind: (start, stop) for kind, start, stop in _walk(data, begin, end)}


def _handler(data: bytes, begin: int, end: int) -> bytes:
    mdia = _boxes(data, begin, end)[b"mdia"]
    start, _ = _boxes(data, *mdia)[b"hdlr"]
    return data[start + 8 : start + 12]


def _track(data: bytes, moov: dict[bytes, tuple[int, int]], begin: int, end: int) -> Mp4Track | None:
    trak = _boxes(data, begin, end)
    mdia = _boxes(data, *trak[b"mdia"])
    stbl = _boxes(data, *_boxes(data, *mdia[b"minf"])[b"stbl"])
    start, _ = trak[b"tkhd"]
    matrix = start + (52 if data[start] == 1 else 40)
    if data[matrix : matrix + 36] != UPRIGHT:
        return None
    entry = _entry(data, *stbl[b"stsd"])
    if entry is None:
        return None
    kind, width, height, boxes = entry
    if not boxes.keys() <= KNOWN_IN_ENTRY:
        return None
    codec, parameters = CODECS[kind]
    sizes = _sizes(data, *stbl[b"stsz"])
    offsets = _offsets(data, stbl, sizes)
    durations = _runs(data, *stbl[b"stts"], len(sizes))
    times = np.cumsum(durations) - durations
    if b"ctts" in stbl:
        shifts = _runs(data, *stbl[b"ctts"], len(sizes))
        if (shifts >= 2**31).any():
            return None
        times = times + shifts
    if (offsets < 0).any() or (offsets + sizes > len(data)).any() or (sizes <= 0).any() or sizes.sum() > len(data):
        return None
    ticks_per_second = _timescale(data, *mdia[b"mdhd"])
    if b"edts" in trak:
        times_shown = _edited(data, trak[b"edts"], times, ticks_per_second, _timescale(data, *moov[b"mvhd"]))
        if times_shown is None:
            return None
        times = times_shown
    keys = np.ones(len(sizes), dtype=np.bool_)
    if b"stss" in stbl:
        keys[:] = False
        keys[_table(data, *stbl[b"stss"])[0] - 1] = True
    return Mp4Track(
        codec=codec,
        extradata=data[slice(*boxes[parameters])],
        width=width,
        height=height,
        tick_seconds=Fraction(1, ticks_per_second),
        offsets=offsets,
        sizes=sizes,
        times=times,
        keys=keys,
        duration_ticks=int(durations.sum()),
        colour=_colour(data, *boxes[b"colr"]) if b"colr" in boxes else None,
    )


def _entry(data: bytes, begin: int, end: int) -> tuple[bytes, int, int, dict[bytes, tuple[int, int]]] | None:
    """Return (kind, width, height, boxes inside) of the only sample entry."""
    entries = list(_walk(data, begin + 8, end))
    if len(entries) != 1 or entries[0][0] not in CODECS:
        return None
    kind, start, stop = entries[0]
    width, height = struct.unpack_from(">HH", data, start + 24)
    return kind, width, height, _boxes(data, start + ENTRY_BYTES - 8, stop)


def _colour(data: bytes, begin: int, end: int) -> tuple[int, int, int, int] | None:
    if data[begin : begin + 4] != b"nclx" or end < begin + 11:
        raise ValueError("a colour profile of another kind")
    primaries, transfer, matrix, full = struct.unpack_from(">HHHB", data, begin + 4)
    return primaries, transfer, matrix, full >> 7


def _timescale(data: bytes, begin: int, _: int) -> int:
    value: int = struct.unpack_from(">I", data, begin + (20 if data[begin] == 1 else 12))[0]
    return value


def _table(data: bytes, begin: int, end: int, columns: int = 1, *, head: int = 4, kind: str = ">u4") -> Int64Array:
    """Read the columns (c, rows) of a table.

    A table is version and flags, `head` more bytes that end with the row count, and the rows.
    """
    rows = int.from_bytes(data[begin + head : begin + head + 4], "big")
    numbers = np.frombuffer(data, dtype=kind, count=rows * columns, offset=begin + head + 4)
    if begin + head + 4 + numbers.nbytes > end:
        raise ValueError("a table longer than its box")
    return numbers.reshape(rows, columns).T.astype(np.int64)


def _sizes(data: bytes, begin: int, end: int) -> Int64Array:
    if data[begin + 4 : begin + 8] != bytes(4):
        raise ValueError("samples of one size")  # useless for video
    sizes: Int64Array = _table(data, begin, end, head=8)[0]
    if len(sizes) == 0:
        raise ValueError("no samples")
    return sizes


def _runs(data: bytes, begin: int, end: int, samples: int) -> Int64Array:
    """Expand a table of (count, value) to one value per sample."""
    counts, values = _table(data, begin, end, 2)
    if int(counts.sum()) != samples:
        raise ValueError("a table of another number of samples")
    return np.repeat(values, counts)


def _offsets(data: bytes, stbl: dict[bytes, tuple[int, int]], sizes: Int64Array) -> Int64Array:
    """Compute where each sample starts, from the chunk offsets and the number of samples in each chunk."""
    chunks = _table(data, *stbl[b"co64"], kind=">u8")[0] if b"co64" in stbl else _table(data, *stbl[b"stco"])[0]
    first, samples, entry = _table(data, *stbl[b"stsc"], 3)
    lasts = np.append(first[1:], len(chunks) + 1)
    counts = np.repeat(samples, lasts - first)
    if len(counts) != len(chunks) or int(counts.sum()) != len(sizes) or (entry != 1).any() or first[0] != 1:
        raise ValueError("chunks and samples do not fit together")
    before = np.cumsum(sizes) - sizes
    first_samples = np.cumsum(counts) - counts
    kept = counts > 0
    chunk_begins = np.repeat(before[first_samples[kept]], counts[kept])
    offsets: Int64Array = np.repeat(chunks[kept], counts[kept]) + before - chunk_begins
    return offsets


def _edited(
    data: bytes, edts: tuple[int, int], times: Int64Array, ticks_per_second: int, movie_ticks_per_second: int
) -> Int64Array | None:
    """Return the times as shown if the edit list starts at the first frame and omits none; otherwise None."""
    begin, _ = _boxes(data, *edts)[b"elst"]
    wide = data[begin] == 1
    if int.from_bytes(data[begin + 4 : begin + 8], "big") != 1:
        return None
    duration, start, rate = struct.unpack_from(">QqI" if wide else ">IiI", data, begin + 8)
    origin = int(times.min())
    ends = start + duration * ticks_per_second // movie_ticks_per_second
    if start != origin or rate != 1 << 16 or int(times.max()) >= ends:
        return None
    return times - origin
