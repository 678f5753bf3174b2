from __future__ import annotations

from pathlib import Path

import pytest

from tpn_ray.data.plan import Plan
from tpn_ray.training.order_ledger import OrderLedger, check

PLAN = Plan(samples=8, seed=0, epochs=2, batch_clips=4, micro_batch_clips=2)
"""Four steps of two micro-batches."""


def train(folder: Path, start: int, first: int, end: int, workers: int = 2) -> None:
    """One start of all ranks, as far as step `end`."""
    for rank in range(workers):
        ledger = OrderLedger(str(folder), start, rank, first)
        for step in range(first, end):
            for number in range(rank, 2, workers):
                ledger.trained(step, number, PLAN.slot(number, 1, step).positions.tolist())


def test_a_run_with_restarts_and_other_numbers_of_workers_is_whole(tmp_path: Path) -> None:
    train(tmp_path, 1, 0, 3)  # lost behind step 2
    train(tmp_path, 2, 2, 3, workers=1)
    train(tmp_path, 3, 2, 4)
    assert check(str(tmp_path), PLAN) == []


def test_a_torn_last_line_does_not_matter_when_its_step_is_done_again(tmp_path: Path) -> None:
    train(tmp_path, 1, 0, 3)
    path = min(tmp_path.glob("*.jsonl"))
    path.write_text(path.read_text()[:-5])
    train(tmp_path, 2, 2, 4)
    assert check(str(tmp_path), PLAN) == []


@pytest.mark.parametrize(
    ("starts", "fault"),
    [
        ([(1, 0, 2), (2, 3, 4)], "step 2: micro-batch 0 was not trained"),
        ([(1, 2, 4)], "the beginning is missing"),
        ([], "the beginning is missing"),
        ([(1, 0, 3)], "step 3: micro-batch 1 was not trained"),
    ],
)
def test_a_gap_is_found(tmp_path: Path, starts: list[tuple[int, int, int]], fault: str) -> None:
    for start, first, end in starts:
        train(tmp_path, start, first, end)
    assert fault in check(str(tmp_path), PLAN)


def test_other_clips_and_repeated_ones_are_found(tmp_path: Path) -> None:
    train(tmp_path, 1, 0, 4)
    OrderLedger(str(tmp_path), 1, 5, 0).trained(1, 0, [4, 5])
    OrderLedger(str(tmp_path), 1, 6, 0).trained(1, 1, [0, 1])
    faults = check(str(tmp_path), PLAN)
    assert len(faults) == 2
    assert all(fault.startswith("step 1: micro-batch") and "too often" in fault for fault in faults)
