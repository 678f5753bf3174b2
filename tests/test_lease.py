"""One writer per folder, on a disk and on a real S3 server; holders are processes, as two jobs are."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs.processes import ROOT
from tests.servers import S3Server
from tpn_ray import lease, storage
from tpn_ray.errors import LeaseError, SupersededError
from tpn_ray.lease import Token, has_ended, held, take

HOLDER = """
import sys, time
from tpn_ray import lease
lease.RENEW_SECONDS = 0.2
mine = lease.take(sys.argv[1], "run demo")
print("held", mine.token.number, flush=True)
while True:
    time.sleep(0.1)
    mine.look()
"""


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.cluster)])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "local":
        return str(tmp_path / "run")
    server: S3Server = request.getfixturevalue("s3")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{server.bucket}/{tmp_path.name}/run"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.1)
    monkeypatch.setattr(lease, "SILENT_SECONDS", 3.0)


@contextlib.contextmanager
def holder(folder: str) -> Iterator[subprocess.Popen[str]]:
    """Another job, which holds the lease."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("held")
        yield process
    finally:
        process.kill()
        process.communicate()


def numbers(folder: str) -> list[str]:
    return [storage.name(file.uri) for file in storage.list_files(f"{folder}/lease")]


def test_a_job_that_lives_is_named_and_not_disturbed(folder: str) -> None:
    with holder(folder) as other, pytest.raises(LeaseError) as raised:
        take(folder, "run demo")
    said = str(raised.value)
    assert re.search(rf"another job is working on the run demo in .*process {other.pid}, since 20.*-c", said), said
    assert "Wait for it to end, stop it, or choose another --name" in said
    assert numbers(folder) == ["00000001.json"]


def test_the_next_job_has_it_at_once_after_a_release_and_after_a_kill(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SILENT_SECONDS", 1e6)  # nothing of this is a wait for silence
    with held(folder, "run demo") as first:
        first.token.check()
    with pytest.raises(RuntimeError, match="a fault"), held(folder, "run demo"):
        raise RuntimeError("a fault")
    with holder(folder) as other:
        other.kill()  # and nobody has waited for it yet
        time.sleep(0.2)
        with held(folder, "run demo") as second:
            assert second.token.number == 4
            assert numbers(folder) == ["00000004.json"]
    with pytest.raises(LeaseError, match="another job has taken over the run demo"):
        first.token.check()


def test_a_holder_that_stands_still_loses_it_and_is_told_when_it_wakes(folder: str) -> None:
    said: list[str] = []
    with holder(folder) as other:
        other.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        with held(folder, "run demo", say=said.append):
            assert time.monotonic() - begun >= lease.SILENT_SECONDS
            other.send_signal(signal.SIGCONT)
            _, errors = other.communicate(timeout=60)
    assert other.returncode == 1
    assert f"LeaseError: another job has taken over the run demo in {folder}: " in errors
    assert f"process {os.getpid()}" in errors
    assert "is taken over if none comes within 3 s" in said[0]
    assert "is taken over: " in said[-1]
    assert numbers(folder) == ["00000002.json"]


def test_of_many_that_begin_at_once_one_has_it(folder: str) -> None:
    taken, refused = list[lease.Lease](), list[LeaseError]()

    def go() -> None:
        try:
            taken.append(take(folder, "run demo"))
        except LeaseError as error:
            refused.append(error)

    threads = [threading.Thread(target=go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), len(refused)) == (1, 5)
    taken[0].token.check()
    taken[0].release()


def test_a_holder_whose_file_was_not_whole_at_first_is_still_seen(tmp_path: Path) -> None:
    with held(str(tmp_path), "run demo"):
        (tmp_path / "lease" / "00000001.json").write_bytes(b"{")
        with pytest.raises(LeaseError, match="another job is working on the run demo"):
            take(str(tmp_path), "run demo")


def test_what_a_watcher_sees_of_a_holder(tmp_path: Path) -> None:
    with held(str(tmp_path), "run demo"):
        mine = lease.holder(str(tmp_path))
    started = int(Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19])
    assert not has_ended(mine)
    assert has_ended({**mine, "released": True})
    assert has_ended({**mine, "started": mine["started"] - 1})  # its number is another process's by now
    assert has_ended({**mine, "process": 2**22 + 1})
    assert not has_ended({**mine, "process": 2**22 + 1, "machine": "elsewhere"})
    assert not has_ended({**mine, "machine": "", "process": 2**22 + 1})
    assert not has_ended({**mine, "process": 1, "started": started})
    assert not has_ended({})  # not whole: only silence ends it


def test_a_store_that_is_away_takes_the_lease_from_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tpn_ray.errors import StorageError

    def away(*_: object, **__: object) -> None:
        raise StorageError("the store is away")

    folder = str(tmp_path)
    with held(folder, "run demo") as mine:
        with monkeypatch.context() as patch:
            patch.setattr(storage, "list_files", away)
            patch.setattr(storage, "write_bytes", away)
            time.sleep(1)
            mine.look()
            with pytest.raises(StorageError):
                mine.token.check()
        mine.token.check()


def test_a_run_that_is_deleted_stops_its_job(tmp_path: Path) -> None:
    with held(str(tmp_path / "run"), "run demo") as mine:
        storage.delete_folder(str(tmp_path / "run"))
        with pytest.raises(LeaseError, match="was deleted or moved; this job stops"):
            mine.token.check()
        time.sleep(1)
        with pytest.raises(LeaseError):
            mine.look()
    assert not (tmp_path / "run").exists()


def test_only_the_newest_group_of_workers_may_write(tmp_path: Path) -> None:
    campaign = str(tmp_path)
    with held(campaign, "campaign demo") as mine:
        token: Token = pickle.loads(pickle.dumps(mine.token))  # noqa: S301 - its own
        first, other_trial = token.begin(f"{campaign}/trial-0"), token.begin(f"{campaign}/trial-1")
        first.check()
        second = token.begin(f"{campaign}/trial-0")
        second.check()
        other_trial.check()
        with pytest.raises(SupersededError, match="a newer worker group is training the campaign demo"):
            first.check()
    with held(campaign, "campaign demo"):
        for token in (second, other_trial):
            with pytest.raises(LeaseError, match="another job has taken over"):
                token.check()


def test_a_former_holder_replaces_nothing(folder: str) -> None:
    uri = f"{folder}/step/weights.pt"
    former = take(folder, "run demo")
    former.token.write(uri, b"half of an attempt that failed")
    former.token.write(uri, b"mine")
    former.release()
    with held(folder, "run demo") as mine:
        mine.token.write(uri, b"the holder's")
        with pytest.raises(LeaseError):
            former.token.write(uri, b"too late")
    assert storage.read_bytes(uri) == b"the holder's"


def test_what_is_too_large_for_a_condition_is_written_under_the_lease(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the weights of any larger network are."""
    monkeypatch.setattr("tpn_ray.storage.files.CREATE_BYTES", 3000)
    uri = f"{folder}/step/weights.pt"
    former = take(folder, "run demo")
    for content in (b"a" * 5000, b"b" * 5000):
        former.token.write(uri, content)
        assert storage.read_bytes(uri) == content
    former.release()
    with held(folder, "run demo"), pytest.raises(LeaseError):
        former.token.write(uri, b"c" * 5000)
    assert storage.read_bytes(uri) == b"b" * 5000
