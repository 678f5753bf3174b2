"""What a campaign's watcher sees, and what dashboards show of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tpn_ray.training import gauges
from tpn_ray.tuning import watch
from tpn_ray.tuning.journal import Journal, Point, Trial


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], float]:
    """Values of the metrics, by name and labels."""
    found: dict[tuple[str, ...], float] = {}

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.name, self.keys = name, tag_keys

        def set(self, value: float, tags: dict[str, Any]) -> None:
            assert set(tags) == set(self.keys)
            found[(self.name, *tags.values())] = value

    monkeypatch.setattr(gauges, "_made", {})
    monkeypatch.setattr(gauges.ray.util.metrics, "Gauge", Gauge)
    return found


def trial(number: int, *top1: float, **more: Any) -> Trial:
    points = tuple(
        Point(epoch=epoch, scores={"val_top1": value}, checkpoint="c") for epoch, value in enumerate(top1, 1)
    )
    return Trial(number=number, sample={}, points=points, **more)


def test_every_trial_is_in_one_state(shown: dict[tuple[str, ...], float]) -> None:
    known = [trial(0, 0.1, 0.5), trial(1, 0.7), trial(2, failure="lost"), trial(3, 0.2, stopped=True)]
    watch.show("search", known, trials=6, epochs=8, in_full=2)
    states = {key[2]: value for key, value in shown.items() if key[0] == "tpn_campaign_trials"}
    assert states == {"done": 1, "begun": 1, "failed": 1, "stopped": 1, "waiting": 2}
    assert shown["tpn_campaign_epochs", "search", "trained"] == 4
    assert shown["tpn_campaign_epochs", "search", "planned"] == 8
    assert shown["tpn_campaign_best_top1", "search"] == 0.7


def test_a_campaign_that_has_just_begun(shown: dict[tuple[str, ...], float]) -> None:
    watch.show("search", [], trials=3, epochs=6, in_full=2)
    assert shown["tpn_campaign_trials", "search", "waiting"] == 3
    assert ("tpn_campaign_best_top1", "search") not in shown


def test_the_journal_is_shown_at_the_end_too(tmp_path: Path) -> None:
    journal, seen = Journal(uri=str(tmp_path)), list[list[int]]()
    with watch.watched(journal, lambda trials: seen.append([one.number for one in trials]), seconds=60):
        journal.write(trial(0, 0.5))
        journal.write(trial(1))
    assert seen == [[0, 1]]


def test_a_damaged_journal_stops_no_look(tmp_path: Path) -> None:
    journal, seen = Journal(uri=str(tmp_path)), list[int]()
    journal.write(trial(0, 0.5))
    (tmp_path / "trials" / "0000.json").write_text("{")
    with watch.watched(journal, lambda trials: seen.append(len(trials)), seconds=0.01):
        while not seen:
            journal.write(trial(0, 0.5))
    assert seen[-1] == 1
