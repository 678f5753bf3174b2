from __future__ import annotations

import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from tpn_ray import checkpoint as checkpoints
from tpn_ray.checkpoint import Checkpoint
from tpn_ray.errors import StorageError, TrainingError
from tpn_ray.train import run_folder, writer
from tpn_ray.train.events import Committed, Event, Notice
from tpn_ray.train.record import Record
from tpn_ray.train.saving import Saving
from tpn_ray.train.writer import FAILURES_ALLOWED, Writer, copied


def checkpoint(step: int, value: float = 1.0) -> Checkpoint:
    weights = {"w": torch.full((3,), value)}
    return Checkpoint(step=step, weights=weights, training={}, recipe={}, label_sets={}, dataset_version="v")


def test_copies_do_not_change_with_what_they_are_copies_of() -> None:
    state = {"a": torch.zeros(2), "b": [torch.zeros(1), {"c": torch.zeros(1), "d": 3}], "e": OrderedDict(f=(1, None))}
    copy = copied(state)
    state["a"] += 1  # type: ignore[operator]
    state["b"][0] += 1  # type: ignore[index]
    assert not copy["a"].any()  # type: ignore[union-attr]
    assert not copy["b"][0].any()  # type: ignore[index]
    assert copy["b"][1]["d"] == 3  # type: ignore[index, call-overload]
    assert copy["e"] == OrderedDict(f=(1, None))


def test_commits_come_one_after_the_other_and_old_ones_go(tmp_path: Path) -> None:
    told: list[Event] = []
    writing = Writer(str(tmp_path), Saving(keep_best=1, keep_last=1), told.append)
    for step, top1 in ((1, 0.9), (2, 0.1), (3, 0.2)):
        writing.commit(checkpoint(step), Record(step=step, epoch=step, scores={"val_top1": top1}))
    writing.close()
    assert [event.step for event in told if isinstance(event, Committed)] == [1, 2, 3]
    assert run_folder.committed_steps(str(tmp_path)) == [1, 3]
    again = Writer(str(tmp_path), Saving(keep_best=1, keep_last=1), told.append)  # it knows what is there
    again.commit(checkpoint(4), Record(step=4, epoch=4))
    again.close()
    assert run_folder.committed_steps(str(tmp_path)) == [1, 4]


def test_a_step_does_not_wait_for_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = checkpoints.save

    def slow(uri: str, saved: Checkpoint) -> None:
        time.sleep(0.5)
        save(uri, saved)

    monkeypatch.setattr(checkpoints, "save", slow)
    writing = Writer(str(tmp_path), Saving(), lambda _: None)
    writing.commit(checkpoint(1), Record(step=1, epoch=1))
    assert run_folder.committed_steps(str(tmp_path)) == []
    writing.close()
    assert run_folder.committed_steps(str(tmp_path)) == [1]


def test_what_storage_refuses_for_a_while_is_on_record_with_the_next_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Event] = []
    save, refusals = checkpoints.save, iter([True, True, False])

    def refusing(uri: str, saved: Checkpoint) -> None:
        if next(refusals):
            raise StorageError("the disk is full")
        save(uri, saved)

    monkeypatch.setattr(checkpoints, "save", refusing)
    writing = Writer(str(tmp_path), Saving(), told.append)
    for step in (1, 2, 3):
        writing.commit(checkpoint(step), Record(step=step, epoch=step))
    writing.close()
    assert [event.text for event in told if isinstance(event, Notice)] == [
        "a checkpoint could not be written, training goes on without it: the disk is full"
    ] * 2
    committed = [(event.step, event.checkpoint[-1]) for event in told if isinstance(event, Committed)]
    assert committed == [(1, "3"), (2, "3"), (3, "3")]
    assert [record.step for record in run_folder.read_records(str(tmp_path))] == [1, 2, 3]


def test_storage_that_refuses_for_good_stops_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str, saved: Checkpoint) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(checkpoints, "save", refuse)
    writing = Writer(str(tmp_path), Saving(), lambda _: None)
    for step in range(FAILURES_ALLOWED + 1):
        writing.commit(checkpoint(step), Record(step=step, epoch=1))
    with pytest.raises(StorageError, match="the disk is full"):
        writing.commit(checkpoint(9), Record(step=9, epoch=1))
    last = Writer(str(tmp_path), Saving(), lambda _: None)
    last.commit(checkpoint(1), Record(step=1, epoch=1))
    with pytest.raises(StorageError):
        last.close()


def test_weights_that_are_no_numbers_never_replace_good_ones(tmp_path: Path) -> None:
    writing = writer.Writer(str(tmp_path), Saving(keep_last=1), lambda _: None)
    writing.commit(checkpoint(1), Record(step=1, epoch=1))
    writing.commit(checkpoint(2, float("nan")), Record(step=2, epoch=1))
    with pytest.raises(TrainingError, match="w holds values that are no numbers after step 2"):
        writing.close()
    assert run_folder.committed_steps(str(tmp_path)) == [1]
