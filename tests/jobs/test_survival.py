"""A run that loses a process goes on by itself; a run that loses its driver goes on when it is submitted again."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.jobs.processes import run, start
from tpn_ray import checkpoint as checkpoints
from tpn_ray.train.run_folder import last_checkpoint

pytestmark = pytest.mark.cluster

EPOCHS = 10
LAST = 40


def arguments(data: Path, storage: Path, name: str) -> list[str]:
    flags = ["toy", "--data", str(data), "--storage", str(storage), "--name", name]
    return [*flags, "--loop.epochs", str(EPOCHS), "--loop.evaluate-every-epochs", "2", "--loop.batch-clips", "8",
            "--loop.micro-batch-clips", "4"]  # fmt: skip


def final(storage: Path, name: str) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint: 40 steps of 8 clips."""
    saved = checkpoints.load(str(storage / name / f"step-{LAST:08d}"))
    momenta = {
        f"momentum {key}": state["momentum_buffer"] for key, state in saved.training["optimizer"]["state"].items()
    }
    return {**saved.weights, **momenta}


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def undisturbed(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    storage = tmp_path_factory.mktemp("undisturbed")
    status, output = run("train", *arguments(toy_folder, storage, "a"))
    assert status == 0, output
    return final(storage, "a")


def wait_for_a_checkpoint(run_folder: Path, process: subprocess.Popen[str], seconds: float = 150) -> None:
    """Until one is committed: its files may be there before Ray Train has taken it into its books."""
    deadline = time.monotonic() + seconds
    while last_checkpoint(str(run_folder)) is None:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"no checkpoint in {run_folder} within {seconds} s"
        time.sleep(0.05)


def test_a_killed_worker(toy_folder: Path, tmp_path: Path, undisturbed: dict[str, torch.Tensor]) -> None:
    job = start("train", *arguments(toy_folder, tmp_path, "b"))
    wait_for_a_checkpoint(tmp_path / "b", job)
    workers = [p for p in psutil.Process(job.pid).children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
    assert len(workers) == 2
    workers[-1].kill()
    output, _ = job.communicate(timeout=200)
    assert job.returncode == 0, output
    assert "(start 2)" in output
    assert same_bits(final(tmp_path, "b"), undisturbed)


def test_a_killed_driver_and_the_same_command_again(
    toy_folder: Path, tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    job = start("train", *arguments(toy_folder, tmp_path, "c"))
    wait_for_a_checkpoint(tmp_path / "c", job)
    below = psutil.Process(job.pid).children(recursive=True)
    job.kill()
    job.communicate()
    psutil.wait_procs(below, timeout=60)
    status, output = run("train", *arguments(toy_folder, tmp_path, "c"))
    assert status == 0, output
    assert "training goes on from step" in output
    assert same_bits(final(tmp_path, "c"), undisturbed)
    status, output = run("train", *arguments(toy_folder, tmp_path, "c"), "--optim.lr", "0.07")
    assert status == 2, output
    assert "optim.lr: 0.1 then, 0.07 now" in output
