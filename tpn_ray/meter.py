"""How far a job is, on one line that changes in a terminal and comes again in a log; and tables. Runs on the driver."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, TextIO

LOG_SECONDS = 10.0
"""Interval between two lines in a log. A terminal shows every one in place."""
TABLE_COLUMNS = 120
"""Width of a table where there is no terminal."""


def duration(seconds: float) -> str:
    """Format a duration: 12 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class StatusLine:
    """A line of text that changes. `stream` is standard output unless given."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self.printed_at = -LOG_SECONDS
        self._open = False

    @property
    def stream(self) -> TextIO:
        return self._stream or sys.stdout

    def show(self, text: str) -> None:
        """Show what the line says now."""
        if self.stream.isatty():
            self._open = True
            print("\r\x1b[K" + text, end="", file=self.stream, flush=True)
        elif time.monotonic() - self.printed_at >= LOG_SECONDS:
            self.printed_at = time.monotonic()
            print(text, file=self.stream, flush=True)

    def say(self, text: str) -> None:
        """Print a line that stays, in the place of the one that changes."""
        print(("\r\x1b[K" if self._open else "") + text, file=self.stream, flush=True)
        self._open = False

    def end(self) -> None:
        """Start a new line for what follows."""
        if self._open:
            print(file=self.stream, flush=True)
        self._open = False


class ProgressMeter:
    """Shows how many of `total` things are done, how fast, and how long the rest will take."""

    def __init__(self, what: str, stream: TextIO | None = None) -> None:
        self._what, self._line = what, StatusLine(stream)
        self._begun: tuple[float, int] | None = None

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done; the first call starts the clock."""
        now = time.monotonic()
        self._begun = self._begun or (now, done)
        seconds, mine = now - self._begun[0], done - self._begun[1]
        text = f"{done}/{total} {self._what}"
        if mine and seconds and done < total:
            text += f"  {mine / seconds:.3g}/s  {duration((total - done) * seconds / mine)} left"
        self._line.show(text)
        if done >= total:
            self._line.end()


def print_table(table: Any, columns: int = TABLE_COLUMNS) -> None:
    """Print a table of rich: as wide as the terminal, or where there is none, as wide as COLUMNS says, or `columns`.

    What does not fit is continued on the next line rather than cut off.
    """
    from rich.console import Console

    for column in table.columns:
        column.overflow = "fold"
    fixed = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    Console(width=columns if fixed else None).print(table)
