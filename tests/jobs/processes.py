"""Jobs as a user runs them: as processes, from the repository's root; or, for what is refused at once, by `main`."""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

from tests.ray_head import RayHead
from tpn_ray import session
from tpn_ray.errors import TpnRayError

ROOT = Path(__file__).parents[2]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["ray.data", "ray.tune", "mlflow", "jobs.train", "jobs.tune", "jobs.evaluate", "jobs.prepare"]
)


def start(job: str, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """`python jobs/<job>.py ...` with this Python; stdout and stderr together."""
    return subprocess.Popen(
        [sys.executable, f"jobs/{job}.py", *arguments],
        cwd=ROOT,
        env={**without_ray(), **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(
    job: str, *arguments: str, environment: Mapping[str, str] | None = None, seconds: float = 600
) -> tuple[int, str]:
    """Exit status and output of a finished job."""
    process = start(job, *arguments, environment=environment)
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise AssertionError(f"the job did not end in {seconds} s; it printed:\n{output}") from None
    return process.returncode, output


def submit(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Exit status and output of the client; a head that has just started may take some seconds to take jobs."""
    deadline = time.monotonic() + 240
    while True:
        done = subprocess.run(
            command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
        )
        output = done.stdout + done.stderr
        if "No available agent" not in output or time.monotonic() > deadline:
            return done.returncode, output
        time.sleep(2)


def without_ray() -> dict[str, str]:
    """This environment without the address of a Ray that another test runs, and without wrapping of messages."""
    return {**{key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}, "COLUMNS": "200"}


def run_on(head: RayHead, job: str, *arguments: object) -> tuple[int, str]:
    """Exit status and output of a job that joins `head`, by its `main` in a fork. Jobs with a Ray instance of their own
    are in tests/jobs/test_submit.py and tests/chaos."""
    joined = {**head.environment, "RAY_ADDRESS": head.address, "COLUMNS": "200"}
    return in_a_fork(job, [str(one) for one in arguments], joined)


def in_a_fork(
    job: str, arguments: Sequence[str], environment: Mapping[str, str], seconds: float = 600
) -> tuple[int, str]:
    """Exit status and output of a job's `main` in a fork of a process that has imported what jobs import, which takes
    a new one six seconds. What a job leaves behind in its process goes with it."""
    ours, theirs = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_answer, args=(theirs, job, arguments, environment))
    process.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            raise AssertionError(f"{job} did not end in {seconds} s")
        answer: tuple[int, str] = ours.recv()
    except EOFError:
        process.join(10)
        raise AssertionError(f"{job} ended without an answer, with status {process.exitcode}") from None
    finally:
        process.kill()
        process.join(10)
        ours.close()
    return answer


def _answer(pipe: Connection, job: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    try:
        pipe.send(in_this_process(job, arguments, environment))
    finally:
        session.disconnect()


def refusal(job: str, *arguments: str) -> str:
    """What `python jobs/<job>.py ...` prints before it gives up, by its `main` in this process. That such an error is
    one line and status 2 is in tests/test_command_line.py."""
    status, said = in_this_process(job, arguments, without_ray())
    assert status == 2, f"jobs/{job}.py {' '.join(arguments)} was not refused; it printed:\n{said}"
    return said


def in_this_process(job: str, arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """Status and output of a job's `main`."""
    main, said = importlib.import_module(f"jobs.{job}").main, io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", [f"jobs/{job}.py", *arguments]))
        stack.enter_context(mock.patch.dict(os.environ, environment, clear=True))
        stack.enter_context(contextlib.redirect_stdout(said))
        stack.enter_context(contextlib.redirect_stderr(said))
        try:
            return main() or 0, said.getvalue()
        except TpnRayError as error:
            return 2, f"{said.getvalue()}{error}"
        except SystemExit as left:  # of a flag that is not known
            return int(left.code or 0), said.getvalue()
