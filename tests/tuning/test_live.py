"""How far a campaign is, on the terminal, in a log, in MLflow, and in its report; from made journals."""

from __future__ import annotations

import dataclasses
import io
import time
from typing import Any

import pytest
from rich.console import Console

from tests.tuning.test_watch import trial
from tpn_ray.tuning import live
from tpn_ray.tuning.journal import Held, Kind, Transition, Trial

EXTENT = live.Extent(name="search", trials=4, epochs=10, in_full=4, max_concurrent=2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic time, to be moved by hand."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def begun(number: int, *top1: float, **more: Any) -> Trial:
    held = Held(session="s", begin=0.0, started=60.0, end=3600.0)
    return trial(number, *top1, held=(held,), **more)


def drawn(trials: list[Trial], rows: int, columns: int = 100) -> list[str]:
    stream = io.StringIO()
    now = live.standing(trials, EXTENT, live.Countdown())
    Console(file=stream, width=columns).print(live.table(trials, now, EXTENT, rows))
    return stream.getvalue().splitlines()


def test_a_standing_counts_the_best_score_at_any_epoch_and_the_hours(clock: list[float]) -> None:
    known, hand = [begun(0, 0.5, 0.3), begun(1, 0.4)], live.Countdown()
    assert live.standing(known, EXTENT, hand).seconds_left is None, "no speed yet"
    clock[0] += 60
    now = live.standing([*known, begun(2, 0.2, 0.1)], EXTENT, hand)
    assert (now.epochs, now.score) == (5, 0.5)
    assert now.best == known[0]
    assert now.seconds_left == pytest.approx(5 * 30)
    assert now.spent.held == pytest.approx(3.0)
    assert now.saved == pytest.approx(3.0 / 5 * 12 - 3.0)
    said = live.line(now, EXTENT)
    assert said.startswith("5 of at most 10 epochs  best so far 50.0% (trial-0000)  3 h 00 min of trials' time, ")
    assert said.endswith("4 h 12 min saved  2 min 30 s left")


def test_the_table_has_the_best_trials_and_fits(clock: list[float]) -> None:
    long = dataclasses.replace(begun(1, 0.4), sample={f"optim.field{i}": 0.123456 for i in range(30)})
    failed = begun(2, failure="TrainingError: \x1b[2J[red]boo")
    lines = drawn([begun(0, 0.5, 0.3), long, failed], rows=3, columns=90)
    assert max(map(len, lines)) <= 90
    text = "\n".join(lines)
    assert "│ trial-0000 │ 2/4   │ 30.0% │ 50.0% │ 1 h 00 min │" in text
    assert "field0=0.123  field1=0" in text
    assert "\\x1b[2J[red]boo" in text, "a message commands no terminal"
    assert "1 more, 1 of them not begun" in text
    assert sum("trial-" in line for line in drawn([begun(0, 0.5), long, failed], rows=1)[1:]) == 1


def test_a_log_has_a_line_a_minute(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    display = live.Display(EXTENT, None)
    for _ in range(25):
        clock[0] += 10
        display([begun(0, 0.5)])
    assert capsys.readouterr().out.count("1 of at most 10 epochs") == 4


def test_a_terminal_gets_a_table(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[Any] = []
    live.Display(EXTENT, shown.append)([begun(0, 0.5)])
    assert [one.row_count for one in shown] == [1]
    assert not capsys.readouterr().out


class Tracked:
    """The points of a run's curve; `last` are those of an earlier submission."""

    def __init__(self, last: int) -> None:
        self.last, self.points = last, list[tuple[int, float]]()

    def last_step(self, metric: str) -> int:
        return self.last

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.points.append((step, values[live.BEST_SO_FAR]))

    def send(self) -> bool:
        return True


def test_the_curve_rises_by_epochs_and_resumes() -> None:
    tracked: Any = Tracked(last=2)
    curve = live.Curve(tracked)
    repeat = trial(100_001, 0.9, repeat_of=0)
    for known in ([], [trial(0, 0.2, 0.3)], [trial(0, 0.2, 0.3), trial(1, 0.1)], [trial(0, 0.5, 0.3, 0.1), repeat]):
        curve(known)
    assert tracked.points == [(3, 0.3), (4, 0.5)], "a repeat is no new setting"


def test_the_report_is_written_when_a_rung_ends(clock: list[float]) -> None:
    written: list[int] = []
    reports = live.Reports(lambda trials: written.append(len(trials)), in_full=4)
    promoted = trial(0, 0.5, lineage=(Transition(kind=Kind.PROMOTED, epoch=1),))
    reports([trial(0, 0.5)])
    assert written == []
    reports([promoted])
    reports([promoted])
    assert written == [1]
    reports([promoted, trial(1, stopped=True)])
    assert written == [1], "not twice within a minute"
    clock[0] += live.REPORT_SECONDS
    reports([promoted, trial(1, stopped=True)])
    assert written == [1, 2]
