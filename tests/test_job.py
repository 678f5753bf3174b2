"""How a job's process ends: status, one clear line, no traceback for what is no fault of the program."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.jobs.processes import start

JOB = """
import sys, time
from tpn_ray import job as process
from tpn_ray.errors import StorageError
def job():
    {body}
process.run_job(job, leave=lambda: print("left"))
print("after")
"""


def outcome(body: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", JOB.format(body=body)], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_a_job_that_ends_well_goes_on() -> None:
    assert outcome("pass") == (0, "left\nafter\n", "")


def test_a_users_error_is_its_message() -> None:
    status, out, error = outcome("raise StorageError('cannot read s3://b/k: no such bucket')")
    assert (status, out) == (2, "")
    assert error == "\nStorageError: cannot read s3://b/k: no such bucket\n"


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    status, _, error = outcome("raise KeyError('x')")
    assert status == 1
    assert "Traceback" in error


def test_nothing_is_said_where_nobody_reads_on() -> None:
    job = JOB.format(body="[print('line', flush=True) for _ in range(100_000)]")
    with subprocess.Popen([sys.executable, "-c", job], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()  # as `| head -1` does
        assert process.stderr.read() == b""
        assert process.wait(60) == 128 + signal.SIGPIPE


def test_another_broken_pipe_is_a_fault() -> None:
    status, _, error = outcome("raise BrokenPipeError('of a socket')")
    assert status == 1
    assert "of a socket" in error


@pytest.mark.parametrize(("name", "expected"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_stopping_a_job_says_how_it_goes_on(name: str, expected: int) -> None:
    kill = f"os.kill(os.getpid(), signal.{name}); time.sleep(20)"
    status, out, error = outcome(f"import os, signal; process.goes_on('--name one'); {kill}")
    assert (status, out) == (expected, "")
    assert error == "\nstopped; the same command with --name one resumes where this one stopped\n"
    assert outcome(f"import os, signal; {kill}")[2] == "\nstopped; the same command starts over\n"


@pytest.mark.parametrize(
    "body",
    [
        # Somebody catches the exception, as a broad `except` does.
        "try:\n        os.kill(os.getpid(), signal.SIGTERM)\n    except BaseException:\n        time.sleep(50)",
        # The main thread is where no exception reaches it, as in C++ that goes on after signals.
        "import hashlib; threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",
        # What waits for a cluster makes an error of its own of it.
        "try:\n        os.kill(os.getpid(), signal.SIGTERM)\n    except BaseException as e:\n"
        "        raise StorageError('the cluster is gone') from e",
    ],
    ids=["swallowed", "not_reached", "another_error"],
)
def test_a_stop_ends_the_job_whatever_becomes_of_the_exception(body: str) -> None:
    status, _, error = outcome(f"import os, signal, threading\n    {body}")
    assert status == 143, error
    assert error == "\nstopped; the same command starts over\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_a_job_imports_is_one_line(number: signal.Signals) -> None:
    job = start("train", "toy", "--data", "nowhere")
    try:
        deadline = time.monotonic() + 120
        while not any("libtorch" in map.path for map in psutil.Process(job.pid).memory_maps()):
            assert job.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        job.send_signal(number)
        output, _ = job.communicate(timeout=60)
    finally:
        job.kill()
    assert (output, job.returncode) == ("\nstopped before it started\n", 128 + number)
