"""What a trial's process tells the journal, Ray Tune, and the driver; training itself is made up here."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.tuning.test_campaigns import campaign, manifest  # noqa: F401 - fixtures
from tpn_ray.errors import StorageError, TrainingError
from tpn_ray.training.events import Committed, Notice
from tpn_ray.tuning import trial as trials
from tpn_ray.tuning.journal import Kind, Point, Trial
from tpn_ray.tuning.trial import Campaign, run_trial


class Place:
    """Everything around a trial's process."""

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.mailed: list[Any] = []
        self.error: Exception | None = None
        self.ended_at = 0
        self.pointer: Path | None = None
        self.put = SimpleNamespace(remote=self.mailed.append)

    def report(self, metrics: dict[str, Any], checkpoint: Path) -> None:
        assert json.loads((checkpoint / "pointer.json").read_text())["epoch"] == metrics["epoch"]
        self.happened.append(f"told {metrics['epoch']}" + " again" * metrics["told_again"])

    def train(self, *told: Any, on_event: Any, stretch: Any, name: str, **more: Any) -> Any:
        self.happened.append(f"{name} begins")
        on_event(Notice(text="slow"))
        for epoch in range(1, (self.ended_at or stretch.until_epoch) + 1):
            if self.error and epoch == 2:
                raise self.error
            scores = {"val_top1": epoch / 10, "val_loss": 1.0}
            on_event(Committed(step=epoch, epoch=epoch, checkpoint=f"c{epoch}", scores=scores))
        self.happened.append("its workers are gone")
        return SimpleNamespace(ended="the loss rose" if self.ended_at else "")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    here = Place()
    tune = SimpleNamespace(
        report=here.report, get_checkpoint=lambda: None, Checkpoint=SimpleNamespace(from_directory=Path)
    )
    monkeypatch.setattr(trials, "tune", tune)
    monkeypatch.setattr(trials, "train", here.train)
    monkeypatch.setattr(trials, "begin_child", lambda *told: None)
    return here


def go(campaign: Campaign, place: Place, until: int, known: Trial | None = None) -> Trial:  # noqa: F811
    campaign.journal.write(known or Trial(number=3, sample={}))
    run_trial({"number": 3, "sample": {}, "until": until}, campaign, place, keeps_all=False)
    found = campaign.journal.read(3)
    assert found
    return found


def point(epoch: int) -> Point:
    return Point(epoch=epoch, scores={"val_top1": epoch / 10, "val_loss": 1.0}, checkpoint=f"c{epoch}")


def test_the_last_report_comes_when_the_workers_are_gone(campaign: Campaign, place: Place) -> None:  # noqa: F811
    found = go(campaign, place, until=2)
    assert place.happened == ["trial-0003 begins", "told 1", "its workers are gone", "told 2"]
    assert [point.epoch for point in found.points] == [1, 2]
    assert place.mailed[0] == "trial-0003: warning: slow"
    assert place.mailed[1:] == [f"trial-0003  epoch {epoch}  validation top-1 {epoch}0.0%" for epoch in (1, 2)]


def test_what_was_measured_before_is_told_again(campaign: Campaign, place: Place) -> None:  # noqa: F811
    before = Trial(number=3, sample={}, points=(point(1), point(2)))
    assert go(campaign, place, until=2, known=before) == before
    assert place.happened == ["told 1 again", "told 2 again"]
    assert place.mailed == []


def test_a_trials_own_error_is_its_row(campaign: Campaign, place: Place) -> None:  # noqa: F811
    place.error = TrainingError("the loss is nan at step 7\nmore")
    found = go(campaign, place, until=3)
    assert found.failure == "TrainingError: the loss is nan at step 7"
    assert place.happened == ["trial-0003 begins", "told 1"]
    assert not [one for one in place.mailed if isinstance(one, Exception)]
    place.happened.clear()
    go(campaign, place, until=3, known=found)
    assert place.happened == ["told 1 again"], "it is not tried again"


def test_an_error_that_is_nobodys_own_goes_to_the_driver(campaign: Campaign, place: Place) -> None:  # noqa: F811
    place.error = StorageError("the bucket is gone")
    with pytest.raises(StorageError):
        go(campaign, place, until=3)
    assert place.mailed[-1] is place.error
    left = campaign.journal.read(3)
    assert left
    assert (left.epochs, left.failure) == (1, "")


def test_a_run_that_ends_early_keeps_its_last_score(campaign: Campaign, place: Place) -> None:  # noqa: F811
    place.ended_at = 2
    found = go(campaign, place, until=5)
    assert [point.epoch for point in found.points] == [1, 2, 5]
    assert [(one.kind, one.epoch) for one in found.lineage] == [(Kind.ENDED, 2)]
    assert place.happened[-1] == "told 5"
