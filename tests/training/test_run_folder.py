from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tpn_ray import checkpoint as checkpoints
from tpn_ray.checkpoint import Checkpoint
from tpn_ray.errors import CheckpointError, DamagedError
from tpn_ray.training import run_folder
from tpn_ray.training.record import Record, StepMetrics


def commit(run: str, step: int, top1: float | None = None) -> None:
    scores = {} if top1 is None else {"val_top1": top1}
    history = (StepMetrics(step=step, values={"loss": 1.0 / step}),)
    run_folder.write_record(run, Record(step=step, epoch=step // 2, scores=scores, history=history))
    saved = Checkpoint(
        step=step, weights={"w": torch.ones(3)}, training={}, recipe={}, label_sets={}, dataset_version="v"
    )
    checkpoints.save(run_folder.checkpoint_uri(run, step), saved)


def cut(data: bytes) -> bytes:
    return data[:50]


def empty(data: bytes) -> bytes:
    return b""


def test_nothing_is_on_record_before_the_first_commit(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    assert run_folder.committed_steps(run) == []
    assert run_folder.last_checkpoint(run) is None
    assert run_folder.read_records(run) == []
    run_folder.write_record(run, Record(step=3, epoch=1))
    assert run_folder.read_records(run) == []


def test_records_up_to_the_newest_commit_come_back_in_order(tmp_path: Path) -> None:
    run = str(tmp_path)
    for step, top1 in ((2, 0.5), (4, None), (6, 0.4), (8, 0.5)):
        commit(run, step, top1)
    run_folder.write_record(run, Record(step=10, epoch=5))  # its checkpoint was never committed
    run_folder.delete_checkpoint(run, 4)  # a record outlives its checkpoint
    records = run_folder.read_records(run)
    assert [record.step for record in records] == [2, 4, 6, 8]
    assert records[1].history == (StepMetrics(step=4, values={"loss": 0.25}),)
    assert [record.step for record in run_folder.read_records(run, after=4)] == [6, 8]
    best = run_folder.best(records, run_folder.committed_steps(run))
    assert best is not None
    assert best.step == 8
    assert run_folder.place_of(run, 4, [2, 6, 8]) == f"{run}/step-00000006"  # which has behind it what 4 had
    assert run_folder.committed_steps(run) == [2, 6, 8]
    assert run_folder.last_checkpoint(run) == f"{run}/step-00000008"


def test_runs_below_a_folder_are_not_its_own(tmp_path: Path) -> None:
    commit(str(tmp_path / "trial"), 3)
    assert run_folder.committed_steps(str(tmp_path)) == []
    assert run_folder.read_records(str(tmp_path)) == []


@pytest.mark.parametrize("file", checkpoints.FILES)
def test_a_torn_checkpoint_is_set_aside_and_never_counts_again(tmp_path: Path, file: str) -> None:
    run = str(tmp_path)
    for step in (2, 4):
        commit(run, step)
    torn = tmp_path / "step-00000004" / file
    torn.write_bytes(torn.read_bytes()[:-1])
    step, faults = run_folder.newest_whole(run)
    assert step == 2
    assert len(faults) == 1
    assert file in faults[0]
    assert run_folder.committed_steps(run) == [2]
    assert run_folder.newest_whole(run) == (2, [])
    assert sorted(path.name for path in torn.parent.iterdir()) == sorted((*checkpoints.FILES, run_folder.SET_ASIDE))


@pytest.mark.parametrize("content", [b"[]", b"3", b"", b"{", b"{}"])
def test_a_manifest_that_is_none_is_torn(tmp_path: Path, content: bytes) -> None:
    run = str(tmp_path)
    for step in (2, 4):
        commit(run, step)
    (tmp_path / "step-00000004" / "manifest.json").write_bytes(content)
    step, (fault,) = run_folder.newest_whole(run)
    assert step == 2
    assert "step-00000004" in fault


def test_a_run_whose_checkpoints_are_all_damaged_stops_and_asks(tmp_path: Path) -> None:
    run = str(tmp_path)
    for step in (2, 4):
        commit(run, step)
        (tmp_path / run_folder.name_of(step) / "weights.pt").write_bytes(b"torn")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        DamagedError, match=r"(?s)every checkpoint .* is damaged.*step-00000002\n.*step-00000004\n.*"
    ) as e:
        run_folder.newest_whole(run)
    assert "Put one of these folders back from a copy" in str(e.value)
    assert "or delete them all to train again from the first step" in str(e.value)
    assert sorted(tmp_path.rglob("*")) == before
    for step in (2, 4):
        run_folder.delete_checkpoint(run, step)
    assert run_folder.newest_whole(run) == (0, [])
    commit(run, 2)
    run_folder.set_aside(run, 2)
    with pytest.raises(DamagedError, match="they had been set aside"):
        run_folder.newest_whole(run)


def test_the_best_checkpoint_is_one_that_is_there_and_whole(tmp_path: Path) -> None:
    run = str(tmp_path)
    for step, top1 in ((2, 0.5), (4, 0.9), (6, 0.6), (8, 0.7), (10, 0.1)):
        commit(run, step, top1)
    records = run_folder.read_records(run)
    whole = run_folder.ends(run, records)
    assert (whole.last, whole.best, whole.scores, whole.notices) == (10, 4, {"val_top1": 0.9}, ())
    run_folder.delete_checkpoint(run, 4)
    missing = run_folder.ends(run, records)
    assert (missing.last, missing.best, missing.scores) == (10, 8, {"val_top1": 0.7})
    (notice,) = missing.notices
    assert notice == (
        "the checkpoint of the best evaluation (90.0% top-1 at step 4) is missing: the best one left is "
        f"{run}/step-00000008"
    )
    (tmp_path / "step-00000008" / "weights.pt").write_bytes(b"torn")
    torn = run_folder.ends(run, records)
    assert (torn.last, torn.best, len(torn.notices)) == (10, 6, 2)
    (tmp_path / "step-00000010" / "weights.pt").write_bytes(b"torn")
    assert run_folder.ends(run, records).last == 6
    for step in (2, 6):
        run_folder.delete_checkpoint(run, step)
    commit(run, 12)
    only = run_folder.ends(run, run_folder.read_records(run))
    assert (only.last, only.best, only.scores) == (12, 12, {})
    assert "the last one, which was not scored, is" in only.notices[-1]


@pytest.mark.parametrize("damage", [cut, empty, lambda data: data.replace(b"0.5", b"0.9")])
def test_a_damaged_record_is_named_with_a_way_on(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    run = str(tmp_path)
    for step in (2, 4):
        commit(run, step, 0.5)
    record = tmp_path / "records" / "step-00000002.json"
    record.write_bytes(damage(record.read_bytes()))
    with pytest.raises(DamagedError, match=r"records/step-00000002.json is damaged: .*or delete it: the same command"):
        run_folder.read_records(run)
    record.unlink()
    assert [found.step for found in run_folder.read_records(run)] == [4]


def test_a_record_of_something_else_is_named(tmp_path: Path) -> None:
    run = str(tmp_path)
    commit(run, 2)
    for foreign in (b"[1]", b'{"a": 1}', b'{"history": 3}'):
        (tmp_path / "records" / "step-00000002.json").write_bytes(foreign)
        with pytest.raises(DamagedError, match=r"step-00000002.json is damaged"):
            run_folder.read_records(run)


def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """Its files hold no hashes of themselves."""
    run, about = str(tmp_path), {"recipe": {"optim": {"lr": 0.1}}}
    run_folder.settle(run, about)
    commit(run, 2, 0.5)
    for file in (tmp_path / "run.json", tmp_path / "records" / "step-00000002.json"):
        plain = json.loads(file.read_bytes())
        plain.pop("sha256")
        file.write_text(json.dumps(plain))
    assert run_folder.settle(run, about) == 2
    assert [record.scores for record in run_folder.read_records(run)] == [{"val_top1": 0.5}]


def test_what_a_run_is_cannot_change_under_its_checkpoints(tmp_path: Path) -> None:
    run = str(tmp_path)
    assert run_folder.settle(run, {"recipe": {"optim": {"lr": 0.1}}}) == 0
    commit(run, 2)
    assert run_folder.settle(run, {"recipe": {"optim": {"lr": 0.1}}}) == 2
    with pytest.raises(CheckpointError, match="optim.lr: 0.1 then, 0.2 now"):
        run_folder.settle(run, {"recipe": {"optim": {"lr": 0.2}}})


@pytest.mark.parametrize("damage", [cut, empty, lambda data: data.replace(b"0.1", b"0.2")])
def test_what_a_run_is_comes_from_its_checkpoints_when_its_file_is_damaged(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    run, file = str(tmp_path), tmp_path / "run.json"
    about = {"recipe": {"optim": {"lr": 0.1}}, "label_sets": {"action": ["a"]}, "dataset_version": "v"}
    run_folder.settle(run, about)
    for step in (2, 4):
        saved = Checkpoint(step=step, weights={}, training={}, **about)  # type: ignore[arg-type]
        checkpoints.save(run_folder.checkpoint_uri(run, step), saved)
    (tmp_path / "step-00000004" / "checkpoint.json").write_bytes(b"torn")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    with pytest.raises(DamagedError, match=r"run.json is damaged: .* or delete it: the same command then takes"):
        run_folder.settle(run, about)
    file.unlink()
    with pytest.raises(CheckpointError, match="optim.lr: 0.1 then, 0.2 now"):
        run_folder.settle(run, {**about, "recipe": {"optim": {"lr": 0.2}}})
    assert run_folder.settle(run, about) == 4
    assert file.read_bytes() == whole
    file.unlink()
    (tmp_path / "step-00000002" / "manifest.json").write_bytes(b"")
    with pytest.raises(DamagedError, match="it is not there, and no checkpoint says what the run is"):
        run_folder.settle(run, about)
