from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from tests.servers import free_port
from tests.training.small_runs import ledger_of, write_run
from tpn_ray.datasets.entries import Entry
from tpn_ray.datasets.manifest import Manifest, build
from tpn_ray.errors import BudgetError, StorageError, TrainingError
from tpn_ray.training import bad_record, run_folder
from tpn_ray.training.accounting import SAVE_AGAIN_SECONDS
from tpn_ray.training.events import BadVideos, Committed, Diverged, Event, Notice, Stopped
from tpn_ray.training.record import Record


def test_what_no_new_start_mends_ends_the_run(manifest: Manifest) -> None:
    seen: list[Event] = []
    error = StorageError("no checkpoint could be written for 30 min")
    with pytest.raises(StorageError, match="for 30 min"):
        ledger_of(manifest, seen)(Stopped(error=error))
    assert seen == [Stopped(error=error)]


def test_a_loss_that_is_no_number_names_the_videos(manifest: Manifest) -> None:
    seen: list[Event] = []
    ledger = ledger_of(manifest, seen)
    videos = ledger.plan.slot(0, 1, 2).samples
    with pytest.raises(TrainingError, match=r"the loss is nan at step 2, micro-batch 0.*--optim.lr") as raised:
        ledger(Diverged(step=2, number=0, loss=float("nan")))
    assert all(manifest.select("train").uris[video] in str(raised.value) for video in videos)


def test_what_was_lost_on_its_way_is_passed_on_once(tmp_path: Path, manifest: Manifest) -> None:
    seen: list[Event] = []
    ledger, run = ledger_of(manifest, seen), write_run(tmp_path, manifest)
    for step in (4, 8, 12):  # the checkpoint of step 12 was not committed
        run_folder.write_record(run, Record(step=step, epoch=1))
    ledger(Committed(step=4, epoch=1, checkpoint="c"))
    ledger.catch_up(run)
    ledger.catch_up(run)
    assert [event.step for event in seen if isinstance(event, Committed)] == [4, 8]


def test_what_several_processes_tell_of_storage_is_passed_on_once(manifest: Manifest) -> None:
    seen: list[Event] = []
    ledger = ledger_of(manifest, seen)
    away, back = Notice(text="away", about="storage"), Notice(text="back", about="storage")
    other = Notice(text="a checkpoint could not be written")
    for event in (away, away, other, back, other, back, away):
        ledger(event)
    assert seen == [away, other, back, other, away]


def test_bad_videos_are_booked_once_and_held_to_the_budget(manifest: Manifest, tmp_path: Path) -> None:
    seen: list[Event] = []
    ledger = ledger_of(manifest, seen, str(tmp_path))
    ledger(BadVideos(split="train", found=((0, "empty", "a"),)))
    ledger(BadVideos(split="train", found=((0, "empty", "a"), (1, "empty", "b"))))
    assert len(ledger.bad) == 2
    with pytest.raises(BudgetError, match=r"3 of 48 videos are bad .*, the budget allows 2(.|\n)*--max-bad"):
        ledger(BadVideos(split="val", found=((0, "damaged", "c"),)))
    assert len(seen) == 3


def test_bad_videos_count_after_a_restart(manifest: Manifest, tmp_path: Path) -> None:
    first, second = ledger_of(manifest, [], str(tmp_path)), ledger_of(manifest, [], str(tmp_path))
    first(BadVideos(split="train", found=((0, "empty", "a"), (1, "empty", "b"))))
    first.save(time.monotonic())
    second.take_up()
    assert second.bad == first.bad
    second(BadVideos(split="train", found=((1, "empty", "b"),)))  # decoded again
    with pytest.raises(BudgetError, match="3 of 48 videos are bad"):
        second(BadVideos(split="val", found=((0, "damaged", "c"),)))
    third = ledger_of(manifest, [], str(tmp_path))
    third.take_up()
    assert len(third.bad) == 3
    third(Notice(text="they may have been repaired since: nothing ends before one is bad again"))


def test_bad_videos_are_put_on_record_when_storage_takes_them_again(manifest: Manifest, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.write_text("a file is in the way of the folder")
    ledger = ledger_of(manifest, [], str(run))
    ledger(BadVideos(split="train", found=((0, "empty", "a"),)))
    ledger.save(time.monotonic())
    run.unlink()
    ledger.save(time.monotonic())
    assert not run.exists(), "not at once again"
    ledger.save(time.monotonic() + SAVE_AGAIN_SECONDS)
    assert bad_record.read(str(run), manifest.version)[0] == ledger.bad


@pytest.mark.timeout(60)
def test_events_do_not_wait_for_storage_that_is_away(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    ledger = ledger_of(manifest, [], "s3://bucket/run")
    ledger(BadVideos(split="train", found=((0, "empty", "a"),)))
    begun = time.monotonic()
    ledger.save(begun + 1)  # would wait for five minutes
    assert begun < ledger.save_at < float("inf")


def test_a_bad_segment_is_not_taken_for_another_of_its_file() -> None:
    entries = [Entry(f"s{n}", "/videos/long.mp4", ("x",), "train", (n, n + 1.0)) for n in range(20)]
    ledger = ledger_of(build(entries, {"/videos/long.mp4": 1000}, source="test"), [])  # one may be bad
    with pytest.raises(BudgetError, match="2 of 20 videos are bad"):
        ledger(BadVideos(split="train", found=((0, "damaged", "a"), (2, "damaged", "b"))))


def test_a_burst_of_bad_videos_builds_no_split_for_each(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second each, in a dataset of a million videos."""
    ledger = ledger_of(manifest, [])
    ledger.max_bad = Fraction(1)
    monkeypatch.setattr(Manifest, "select", lambda *_: pytest.fail("a split was built"))
    looked: list[str] = []
    ledger.manifest = dataclasses.replace(manifest, splits=Looked(manifest.splits, looked))
    for row in range(16):
        ledger(BadVideos(split="train", found=((row, "empty", "a"),)))
        ledger(BadVideos(split="val", found=((row, "empty", "a"),)))
    assert len(ledger.bad) == 32
    assert len(looked) == 2, "the splits are gone through once each"


class Looked(list[str]):
    """A list that notes when it is gone through."""

    def __init__(self, values: list[str], looked: list[str]) -> None:
        super().__init__(values)
        self.looked = looked

    def __iter__(self) -> Iterator[str]:
        self.looked.append("")
        return super().__iter__()
