"""A run whose processes are killed goes on, by itself or when it is submitted again, and ends with the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.jobs.processes import run
from tpn_ray import chaos

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

KILLS, SEED = 20, 1
EPOCHS = chaos.epochs_for(KILLS)


def test_kills_at_random(tmp_path: Path) -> None:
    report = chaos.attack(str(tmp_path), kills=KILLS, seed=SEED, epochs=EPOCHS)
    print(report)
    report.check()
    assert sum(report.killed.values()) == KILLS
    assert len(report.killed) >= 4, report
    assert report.interrupted
    assert report.starts > 2
    flags = ["toy", "--data", str(tmp_path / "videos"), "--storage", str(tmp_path), "--name", "under-fire"]
    fields = {**chaos.FIELDS, "loop.epochs": EPOCHS}
    given = [part for name, value in fields.items() for part in (f"--{name}", str(value))]
    status, output = run("train", *flags, *given, "--optim.lr", "0.07")
    assert status == 2, output
    assert "optim.lr: 0.1 then, 0.07 now" in output
