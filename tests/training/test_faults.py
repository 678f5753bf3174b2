"""Checkpoints on storage that fails: what is lost is nothing, and a run goes on with the same bits."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from tests.faulty_proxy import FAULTS, OUTAGES, faulty_proxy
from tests.jobs.processes import ROOT
from tests.servers import S3Server
from tests.training.test_step import STEPS, step_of, training
from tpn_ray import checkpoint as checkpoints
from tpn_ray import storage
from tpn_ray.checkpoint import Checkpoint
from tpn_ray.training import run_folder
from tpn_ray.training.events import Committed, Event
from tpn_ray.training.record import Record
from tpn_ray.training.saving import Saving
from tpn_ray.training.step import Training
from tpn_ray.training.writer import Writer, copied

SEED = 20
EVERY = 9
"""Of so many requests one fails: more than any operation takes, so that trying it again helps."""


def commit(writing: Writer, trained: Training) -> None:
    weights, rest = copied(trained.state())
    saved = Checkpoint(step=trained.step, weights=weights, training=rest, recipe={}, label_sets={}, dataset_version="v")
    writing.commit(saved, Record(step=trained.step, epoch=1))


def same(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other  # type: ignore[arg-type]


@pytest.mark.cluster
@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_on_a_store_that_fails_ends_with_the_same_bits(
    s3: S3Server, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step is committed through the faults, and every step begins from what they let through."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    straight = training()
    for step in range(STEPS):
        straight.train_step(step_of(step), STEPS)
    run, told = f"s3://{s3.bucket}/faults-{fault.replace(' ', '-')}", list[Event]()
    phase = random.Random(SEED).randrange(EVERY)
    with faulty_proxy(s3, fault, lambda number: number % EVERY == phase) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        for step in range(STEPS):
            trained, (newest, torn) = training(), run_folder.newest_whole(run)
            assert (newest, torn) == (step, [])
            if newest:
                saved = checkpoints.load(run_folder.checkpoint_uri(run, newest))
                trained.load(saved.weights, saved.training, saved.step)
            trained.train_step(step_of(step), STEPS)
            writing = Writer(run, Saving(), told.append)
            commit(writing, trained)
            writing.close()
        last = checkpoints.load(run_folder.checkpoint_uri(run, STEPS))
        recorded = [record.step for record in run_folder.read_records(run)]
        assert proxy.faults >= 3
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    assert [event.step for event in told if isinstance(event, Committed)] == list(range(1, STEPS + 1))
    assert recorded == [STEPS - 2, STEPS - 1, STEPS]
    assert same(last.weights, straight.state()[0])
    assert same(last.training, straight.state()[1])


@pytest.mark.cluster
@pytest.mark.parametrize("outage", OUTAGES)
def test_a_commit_outlives_a_store_that_is_away(s3: S3Server, outage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word of a checkpoint that could not be written."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tpn_ray.storage.s3.REQUEST_SECONDS", 1.0)
    monkeypatch.setattr("tpn_ray.storage.retry.LONGEST_WAIT_SECONDS", 1.0)
    run, told, trained = f"s3://{s3.bucket}/outage-{outage}", list[Event](), training()
    with faulty_proxy(s3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        writing = Writer(run, Saving(), told.append)
        for step in range(2):
            trained.train_step(step_of(step), STEPS)
            proxy.go_away(outage)
            back = threading.Timer(2.5, proxy.come_back)
            back.start()
            commit(writing, trained)
            back.join()
        writing.close()
        assert run_folder.newest_whole(run) == (2, [])
        last = checkpoints.load(run_folder.checkpoint_uri(run, 2))
    assert [type(event) for event in told] == [Committed, Committed], told
    assert same(last.weights, trained.state()[0])


FULL_DISK = """
import resource, sys
from tests.training.test_faults import commit, step_of, training
from tests.training.test_step import STEPS
from tpn_ray.training.events import Committed, Notice
from tpn_ray.training.saving import Saving
from tpn_ray.training.writer import Writer

told, trained = [], training()
writing = Writer(sys.argv[1], Saving(), told.append)
none, (_, most) = 1000, resource.getrlimit(resource.RLIMIT_FSIZE)
for step in range(STEPS):
    writing.settle()
    # Writing ends in the middle of a file, as on a disk that is full.
    resource.setrlimit(resource.RLIMIT_FSIZE, (none if step == 1 else most, most))
    trained.train_step(step_of(step), STEPS)
    commit(writing, trained)
writing.close()
print(*(event.step for event in told if isinstance(event, Committed)))
print(*(event.text for event in told if isinstance(event, Notice)), sep="\\n")
"""


def test_a_disk_that_is_full_for_a_while(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    steps, notice = done.stdout.strip().splitlines()
    assert steps == "1 2 3"
    assert notice.startswith("a checkpoint could not be written, training continues without it: cannot write ")
    assert run_folder.committed_steps(str(tmp_path)) == [1, 3]
    assert [record.step for record in run_folder.read_records(str(tmp_path))] == [1, 2, 3]
    assert [path.name for path in tmp_path.rglob(".*")] == []  # nothing half-written stays
    straight = training()
    for step in range(STEPS):
        straight.train_step(step_of(step), STEPS)
    assert same(checkpoints.load(str(tmp_path / "step-00000003")).weights, straight.state()[0])


def test_a_checkpoint_torn_at_any_byte_is_passed_over(tmp_path: Path) -> None:
    trained, choice = training(), random.Random(SEED)
    writing = Writer(str(tmp_path), Saving(), lambda _: None)
    for step in range(2):
        trained.train_step(step_of(step), STEPS)
        commit(writing, trained)
    writing.close()
    whole = tmp_path / "step-00000002"
    for name in (*checkpoints.FILES, checkpoints.MANIFEST):
        torn = tmp_path / f"torn-{name}"
        for step in ("step-00000001", "step-00000002"):
            for file in (tmp_path / step).iterdir():
                storage.write_bytes(str(torn / step / file.name), file.read_bytes())
        data = (whole / name).read_bytes()
        (torn / whole.name / name).write_bytes(data[: choice.randrange(len(data))])
        newest, faults = run_folder.newest_whole(str(torn))
        assert newest == 1, name
        assert whole.name in faults[0]
