"""How far a job is: the same line in place in a terminal, and a line every few seconds in a log."""

from __future__ import annotations

import io
import time

import pytest
from rich.table import Table

from tpn_ray.meter import ProgressMeter, StatusLine, duration, print_table


class TerminalStream(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic time, to be moved by hand."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_meter_says_how_fast_and_how_long(clock: list[float]) -> None:
    log = io.StringIO()
    show = ProgressMeter("videos scored", log)
    for seconds, done in ((0, 0), (1, 2), (20, 40), (100, 200)):
        clock[0] = 100 + seconds
        show(done, 200)
    assert log.getvalue().splitlines() == [
        "0/200 videos scored",
        "40/200 videos scored  2/s  1 min 20 s left",
        "200/200 videos scored",
    ]


def test_a_terminal_shows_every_line_in_place(clock: list[float]) -> None:
    terminal = TerminalStream()
    show = ProgressMeter("videos", terminal)
    show(1, 2)
    show(2, 2)
    print("done", file=terminal)
    assert terminal.getvalue() == "\r\x1b[K1/2 videos\r\x1b[K2/2 videos\ndone\n"


def test_a_line_that_stays_takes_the_place_of_the_one_that_changes() -> None:
    terminal, log = TerminalStream(), io.StringIO()
    for stream in (terminal, log):
        status = StatusLine(stream)
        status.show("step 1")
        status.say("checkpoint c")
        status.end()
    assert terminal.getvalue() == "\r\x1b[Kstep 1\r\x1b[Kcheckpoint c\n"
    assert log.getvalue() == "step 1\ncheckpoint c\n"


@pytest.mark.parametrize(("seconds", "text"), [(12.4, "12 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_table_is_120_columns_wide_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    table = Table("x", expand=True)
    print_table(table)
    monkeypatch.setenv("COLUMNS", "50")
    print_table(table)
    assert {len(line) for line in capsys.readouterr().out.splitlines()} == {120, 50}


def test_a_narrow_table_cuts_nothing_off(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "16")
    table = Table("unbreakable", "number")
    table.add_row("12.3456789", "0.987654321")
    print_table(table)
    said = capsys.readouterr().out
    assert "…" not in said
    rows = [line.split("│")[1:3] for line in said.splitlines() if line.startswith("│")]
    assert ["".join(part[i].strip() for part in rows) for i in (0, 1)] == ["12.3456789", "0.987654321"]
