"""Filters what a job prints: no secrets, and no control characters that could command a terminal. Runs on the driver.

All output goes through here, including what libraries print and log: the text of a foreign exception may hold a
password, and the name of an untrusted video an escape sequence.
"""

from __future__ import annotations

import base64
import contextlib
import html
import io
import logging
import re
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

from tpn_ray.names import CONTROL
from tpn_ray.redaction import redacted

_OWN = re.compile(r"\A\r(?:\x1b\[K)?|\r(?=\n)|\x1b\[[0-9;]*m")
"""Control characters to keep: the start of a terminal's progress line, Windows line ends, and table colors."""


def visible(text: str) -> str:
    """Write out the control characters of a text (`\\x1b`) except tabs and line ends, so that they have no effect."""
    return CONTROL.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    return found[0] if found[0] in "\t\n" else found[0].encode("unicode_escape").decode()


def protect() -> None:
    """Remove secrets and terminal commands from everything that this process prints or logs from now on."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, Protected) or stream is None:
            continue
        protected = Protected(stream)
        setattr(sys, name, protected)
        for handler in _stream_handlers():
            if handler.stream is stream:
                handler.setStream(protected)


@contextlib.contextmanager
def in_place() -> Iterator[Callable[[Any], None] | None]:
    """Yield a function that shows something of rich at the bottom of the terminal, in the place of what it showed
    before; everything printed meanwhile goes above it. None if this is no job, or prints to no terminal.

    What is shown is not filtered: pass foreign text through `visible`.
    """
    streams = [one for one in (sys.stdout, sys.stderr) if isinstance(one, Protected) and one.isatty()]
    if sys.stdout not in streams:
        yield None
        return
    from rich.console import Console
    from rich.file_proxy import FileProxy
    from rich.live import Live

    console = Console(file=streams[0].inner)
    with Live(
        console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as live:
        inner = [one.inner for one in streams]
        for stream in streams:  # they filter first, and then print above
            stream.inner = cast("TextIO", FileProxy(console, stream.inner))
        try:
            yield lambda shown: live.update(shown, refresh=True)
        finally:
            for stream, one in zip(streams, inner, strict=True):
                stream.flush()
                stream.inner = one


def html_table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Return a table for notebooks; the first cell of a row says what the others are."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    lines = [f"<tr>{head}</tr>"] if header else []
    for name, *cells in rows:
        data = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        lines.append(f"<tr><th>{html.escape(name)}</th>{data}</tr>")
    return f"<table>{''.join(lines)}</table>"


def html_picture(png: bytes, about: str) -> str:
    """Return a picture for notebooks, with what it shows."""
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(about, quote=True)}" src="data:image/png;base64,{data}">'


def program(name: str) -> str:
    """Return the command by which the user's shell starts this Python, or a program that is installed with it: its name
    if PATH leads to it, else its path."""
    path = Path(sys.executable) if name == "python" else Path(sys.executable).parent / name
    found = shutil.which(name)
    if found and Path(found).absolute() == path:
        return name
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def _stream_handlers() -> list[logging.StreamHandler[Any]]:
    """List the existing stream handlers, which keep the stream that they were created with."""
    loggers = [
        logging.root,
        *(one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)),
    ]
    handlers = (handler for logger in loggers for handler in logger.handlers)
    return [handler for handler in handlers if isinstance(handler, logging.StreamHandler)]


class Protected(io.TextIOBase):
    """A filter in front of another stream.

    Text is passed on when a line ends or the stream is flushed, since a secret may arrive in several pieces.
    """

    def __init__(self, stream: TextIO) -> None:
        self.inner = stream
        self._pending = ""
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        with self._lock:
            self._pending += _harmless(text)
            if text.endswith("\n"):
                self._pass_on()
        return len(text)

    def flush(self) -> None:
        with self._lock:
            self._pass_on()
            self.inner.flush()

    def _pass_on(self) -> None:
        ready, self._pending = self._pending, ""
        if ready:
            self.inner.write(redacted(ready))

    def isatty(self) -> bool:
        return self.inner.isatty()

    def fileno(self) -> int:
        return self.inner.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.inner.encoding or "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.inner.errors

    @property
    def buffer(self) -> Any:
        """The unfiltered stream for the few callers that write bytes."""
        return self.inner.buffer


def _harmless(text: str) -> str:
    """Write out control characters, except those that this project's own lines use."""
    pieces, place = [], 0
    for own in _OWN.finditer(text):
        pieces += [visible(text[place : own.start()]), own[0]]
        place = own.end()
    return "".join([*pieces, visible(text[place:])])
