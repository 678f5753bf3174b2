"""Writes an MP4 into memory. Runs anywhere."""

from __future__ import annotations

import io
from typing import Any

import av
from av.container import OutputContainer


def open_mp4(file: io.BytesIO) -> OutputContainer:
    """Open an MP4 writer that puts the index first, for which FFmpeg reads the file back while writing it."""
    options = {"movflags": "faststart", "fflags": "bitexact"}
    return av.open(file, "w", format="mp4", container_options=options, io_open=lambda *_: SecondReader(file))


class SecondReader(io.RawIOBase):
    """Reads a BytesIO from its own position."""

    def __init__(self, file: io.BytesIO) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.getbuffer().nbytes}[whence]
        self._at = begin + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        with self._file.getbuffer() as held:
            piece = held[self._at : self._at + len(buffer)]
            buffer[: len(piece)] = piece
            size = len(piece)
            piece.release()
        self._at += size
        return size
