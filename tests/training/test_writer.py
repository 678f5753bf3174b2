from __future__ import annotations

import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from tpn_ray import checkpoint as checkpoints
from tpn_ray import storage
from tpn_ray.checkpoint import Checkpoint
from tpn_ray.errors import LeaseError, StorageError, TrainingError
from tpn_ray.lease import Token, held
from tpn_ray.training import run_folder, writer
from tpn_ray.training.events import Committed, Event, Notice
from tpn_ray.training.record import Record
from tpn_ray.training.saving import Saving
from tpn_ray.training.writer import Writer, copied


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

    def slow(uri: str, saved: Checkpoint, token: Token | None) -> None:
        time.sleep(0.5)
        save(uri, saved, token)

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

    def refusing(uri: str, saved: Checkpoint, token: Token | None) -> None:
        if next(refusals):
            raise StorageError("the disk is full")
        save(uri, saved, token)

    monkeypatch.setattr(checkpoints, "save", refusing)
    writing = Writer(str(tmp_path), Saving(), told.append)
    for step in (1, 2, 3):
        writing.commit(checkpoint(step), Record(step=step, epoch=step))
    writing.close()
    assert [event.text for event in told if isinstance(event, Notice)] == [
        "a checkpoint could not be written, training continues without it: the disk is full"
    ] * 2
    committed = [(event.step, event.checkpoint[-1]) for event in told if isinstance(event, Committed)]
    assert committed == [(1, "3"), (2, "3"), (3, "3")]
    assert [record.step for record in run_folder.read_records(str(tmp_path))] == [1, 2, 3]


def refuse(uri: str, saved: Checkpoint, token: Token | None) -> None:
    raise StorageError("the disk is full")


class Hands:
    """A clock that a test sets; in place of the module `time` in the writer."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_training_stops_when_storage_has_refused_for_the_time_that_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By time: a short interval between checkpoints, or a disk that refuses at once, ends no healthy workers."""
    told: list[Event] = []
    clock = Hands()
    monkeypatch.setattr(writer, "time", clock)
    writing = Writer(str(tmp_path), Saving(give_up_seconds=60.0), told.append)
    writing.commit(checkpoint(5), Record(step=5, epoch=1))
    writing.settle()
    monkeypatch.setattr(checkpoints, "save", refuse)
    for step in range(10, 21):
        writing.commit(checkpoint(step), Record(step=step, epoch=1))
    clock.now += 59.0
    writing.settle()
    writing.commit(checkpoint(20), Record(step=20, epoch=1))
    clock.now += 1.0
    with pytest.raises(StorageError) as raised:
        writing.settle()
    assert "for 1 min, and training stops (--saving.give-up-seconds 60): the disk is full" in str(raised.value)
    assert "The work of steps 6 to 20 is lost; the same command with the same --name resumes from step 5" in str(
        raised.value
    )
    assert sum(isinstance(event, Notice) for event in told) == 11


def test_the_time_counts_from_the_first_refusal_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, clock = checkpoints.save, Hands()
    monkeypatch.setattr(writer, "time", clock)
    writing = Writer(str(tmp_path), Saving(give_up_seconds=60.0), lambda _: None)
    for step in range(1, 5):
        monkeypatch.setattr(checkpoints, "save", refuse)
        writing.commit(checkpoint(2 * step), Record(step=2 * step, epoch=1))
        writing.settle()
        monkeypatch.setattr(checkpoints, "save", save)
        clock.now += 40.0
        writing.commit(checkpoint(2 * step + 1), Record(step=2 * step + 1, epoch=1))
        writing.settle()
    writing.close()
    assert run_folder.last_checkpoint(str(tmp_path)) == f"{tmp_path}/step-00000009"


def test_the_end_of_a_run_waits_for_its_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Event] = []
    save, refusals = checkpoints.save, iter([True, True, False])
    monkeypatch.setattr(writer, "AGAIN_SECONDS", 0.1)

    def refusing(uri: str, saved: Checkpoint, token: Token | None) -> None:
        refuse(uri, saved, token) if next(refusals) else save(uri, saved, token)

    monkeypatch.setattr(checkpoints, "save", refusing)
    writing = Writer(str(tmp_path), Saving(), told.append)
    writing.commit(checkpoint(1), Record(step=1, epoch=1))
    writing.close()
    assert [event.step for event in told if isinstance(event, Committed)] == [1]
    assert "it is the last one, and is retried every 0.1 s: the disk is full" in str(told[0])
    assert run_folder.committed_steps(str(tmp_path)) == [1]
    monkeypatch.setattr(checkpoints, "save", refuse)
    writing = Writer(str(tmp_path), Saving(give_up_seconds=0.5), told.append)
    writing.commit(checkpoint(2), Record(step=2, epoch=1))
    with pytest.raises(StorageError, match="The work of steps 2 to 2 is lost"):
        writing.close()


def test_a_best_checkpoint_that_could_not_be_written_is_not_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, save = str(tmp_path), checkpoints.save
    writing = Writer(run, Saving(), lambda _: None)
    for step, top1 in ((10, 0.5), (20, 0.9), (30, 0.6)):
        monkeypatch.setattr(checkpoints, "save", refuse if step == 20 else save)
        writing.commit(checkpoint(step), Record(step=step, epoch=1, scores={"val_top1": top1}))
        writing.settle()
    records = run_folder.read_records(run)
    assert [record.step for record in records] == [10, 20, 30]
    ends = run_folder.ends(run, records)
    assert (ends.best, ends.scores) == (30, {"val_top1": 0.6})
    assert "(90.0% top-1 at step 20) is missing" in ends.notices[0]


def test_what_cannot_be_deleted_fails_no_commit_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, run = list[Event](), str(tmp_path)
    writing, delete = Writer(run, Saving(keep_last=1), told.append), storage.delete_folder

    def refusing(uri: str) -> None:
        raise StorageError(f"{uri} is in use")

    def commit(step: int) -> None:
        writing.commit(checkpoint(step), Record(step=step, epoch=1))
        writing.settle()

    commit(1)
    monkeypatch.setattr(storage, "delete_folder", refusing)
    for step in range(2, 9):  # more than were once allowed to fail
        commit(step)
    assert run_folder.committed_steps(run) == [8]
    assert len(run_folder.contents(run).folders) == 8
    notices = [event.text for event in told if isinstance(event, Notice)]
    assert len(notices) == 7  # one for each folder
    assert notices[0].startswith(f"{run}/step-00000001 could not be deleted, which is retried with every checkpoint")
    assert [event.step for event in told if isinstance(event, Committed)] == list(range(1, 9))
    monkeypatch.setattr(storage, "delete_folder", delete)
    commit(9)
    writing.close()
    assert list(run_folder.contents(run).folders) == [9]


def test_what_attempts_left_half_written_is_collected(tmp_path: Path) -> None:
    """Folders without a manifest, and records of steps that the run did not come to; not what was set aside."""
    run = str(tmp_path)
    first = Writer(run, Saving(), lambda _: None)
    first.commit(checkpoint(1), Record(step=1, epoch=1))
    first.commit(checkpoint(2), Record(step=2, epoch=1))
    first.close()
    run_folder.set_aside(run, 2)
    storage.write_bytes(f"{run}/step-00000003/weights.pt", b"half")
    storage.write_bytes(f"{run}/step-00000005/weights.pt", b"half")
    run_folder.write_record(run, Record(step=3, epoch=1))
    run_folder.write_record(run, Record(step=5, epoch=1, scores={"val_top1": 1.0}))
    again = Writer(run, Saving(), lambda _: None)
    again.commit(checkpoint(5), Record(step=5, epoch=1))
    again.commit(checkpoint(6), Record(step=6, epoch=1))
    again.close()
    found = run_folder.contents(run)
    assert (found.committed, found.set_aside, sorted(found.folders)) == ([5, 6], [2], [2, 5, 6])
    assert [record.step for record in run_folder.read_records(run)] == [1, 5, 6]
    assert run_folder.read_records(run)[1].scores == {}


def test_a_writer_that_lost_the_lease_changes_nothing_more(tmp_path: Path) -> None:
    run = str(tmp_path)
    with held(run, "run demo") as former:
        token = former.token.begin(run)
        late = Writer(run, Saving(keep_last=1), lambda _: None, token)
        late.commit(checkpoint(1), Record(step=1, epoch=1))
        late.settle()
    with held(run, "run demo") as holder:
        mine = Writer(run, Saving(keep_last=1), lambda _: None, holder.token.begin(run))
        mine.commit(checkpoint(2, 7.0), Record(step=2, epoch=1))
        mine.settle()
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        late.commit(checkpoint(2, 9.0), Record(step=2, epoch=1, scores={"val_top1": 1.0}))
        with pytest.raises(LeaseError, match="another job has taken over the run demo"):
            late.close()
        for attempt in (
            lambda: checkpoints.save(f"{run}/step-00000002", checkpoint(2, 9.0), token),
            lambda: run_folder.write_record(run, Record(step=2, epoch=3), token),
        ):
            with pytest.raises(LeaseError):
                attempt()
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        mine.commit(checkpoint(3), Record(step=3, epoch=1))
        mine.close()
    assert run_folder.committed_steps(run) == [3]


def test_what_a_former_job_commits_in_its_last_moment_is_not_the_runs(tmp_path: Path) -> None:
    """It had looked for the lease just before; the holder has begun, and comes to other steps."""
    run = str(tmp_path)
    with held(run, "run demo") as holder:
        mine = Writer(run, Saving(), lambda _: None, holder.token.begin(run), begun=0)
        run_folder.write_record(run, Record(step=3, epoch=1))
        checkpoints.save(f"{run}/step-00000003", checkpoint(3, 9.0))
        mine.commit(checkpoint(2), Record(step=2, epoch=1))
        mine.close()
    assert run_folder.committed_steps(run) == [2]
    assert run_folder.contents(run).records == {2}


def test_weights_that_are_no_numbers_never_replace_good_ones(tmp_path: Path) -> None:
    writing = writer.Writer(str(tmp_path), Saving(keep_last=1), lambda _: None)
    writing.commit(checkpoint(1), Record(step=1, epoch=1))
    writing.commit(checkpoint(2, float("nan")), Record(step=2, epoch=1))
    with pytest.raises(TrainingError, match="w holds values that are not finite after step 2"):
        writing.close()
    assert run_folder.committed_steps(str(tmp_path)) == [1]
