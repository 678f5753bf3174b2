from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tpn_ray import checkpoint as checkpoints
from tpn_ray.checkpoint import Checkpoint
from tpn_ray.errors import CheckpointError
from tpn_ray.train import run_folder
from tpn_ray.train.record import Record, StepMetrics


def commit(run: str, step: int, top1: float | None = None) -> None:
    scores = {} if top1 is None else {"val_top1": top1}
    history = (StepMetrics(step=step, values={"loss": 1.0 / step}),)
    run_folder.write_record(run, Record(step=step, epoch=step // 2, scores=scores, history=history))
    saved = Checkpoint(
        step=step, weights={"w": torch.ones(3)}, training={}, recipe={}, label_sets={}, dataset_version="v"
    )
    checkpoints.save(run_folder.checkpoint_uri(run, step), saved)


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
    best = run_folder.best(records)
    assert best is not None
    assert best.step == 8
    assert run_folder.committed_steps(run) == [2, 6, 8]
    assert run_folder.last_checkpoint(run) == f"{run}/step-00000008"


def test_runs_below_a_folder_are_not_its_own(tmp_path: Path) -> None:
    commit(str(tmp_path / "trial"), 3)
    assert run_folder.committed_steps(str(tmp_path)) == []
    assert run_folder.read_records(str(tmp_path)) == []


@pytest.mark.parametrize("file", checkpoints.FILES)
def test_a_torn_checkpoint_is_passed_over_and_deleted(tmp_path: Path, file: str) -> None:
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


def test_what_a_run_is_cannot_change_under_its_checkpoints(tmp_path: Path) -> None:
    run = str(tmp_path)
    assert run_folder.settle(run, {"recipe": {"optim": {"lr": 0.1}}}) == 0
    commit(run, 2)
    assert run_folder.settle(run, {"recipe": {"optim": {"lr": 0.1}}}) == 2
    with pytest.raises(CheckpointError, match="optim.lr: 0.1 then, 0.2 now"):
        run_folder.settle(run, {"recipe": {"optim": {"lr": 0.2}}})
