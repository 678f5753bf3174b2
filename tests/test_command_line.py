"""The frame around every job: exit codes, names, errors without tracebacks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tpn_ray import command_line
from tpn_ray.errors import ConfigError

JOB = """
import sys, time
from tpn_ray import command_line
from tpn_ray.errors import StorageError
def job():
    {body}
command_line.run_job(job, leave=lambda: print("left"))
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
        assert process.wait(60) == 1


def test_another_broken_pipe_is_a_fault() -> None:
    status, _, error = outcome("raise BrokenPipeError('of a socket')")
    assert status == 1
    assert "of a socket" in error


def test_stopping_a_job_says_how_it_goes_on() -> None:
    status, out, error = outcome("import os, signal; os.kill(os.getpid(), signal.SIGTERM); time.sleep(20)")
    assert (status, out) == (130, "")
    assert "same --name (or --out) goes on where this one stopped" in error


def test_the_recipe_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.take_recipe_name(["toy", "--x", "1"], ["toy"], "p") == ("toy", ["--x", "1"])
    with pytest.raises(ConfigError, match="unknown recipe 'tony'; known: toy"):
        command_line.take_recipe_name(["tony"], ["toy"], "p")
    with pytest.raises(SystemExit):
        command_line.take_recipe_name(["--help"], ["toy"], "p")
    assert "recipes: toy" in capsys.readouterr().out


def test_fresh_names_differ() -> None:
    assert command_line.fresh_name("toy") != command_line.fresh_name("toy")
