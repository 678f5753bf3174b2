"""Jobs as a user runs them: as processes, from the repository's root; or, for what is refused at once, by `main`."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

from tpn_ray.errors import TpnRayError

ROOT = Path(__file__).parents[2]


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
    job: str, *arguments: str, environment: Mapping[str, str] | None = None, seconds: float = 240
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
            command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
        )
        output = done.stdout + done.stderr
        if "No available agent" not in output or time.monotonic() > deadline:
            return done.returncode, output
        time.sleep(2)


def without_ray() -> dict[str, str]:
    """This environment without the address of a Ray that another test runs, and without wrapping of messages."""
    return {**{key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}, "COLUMNS": "200"}


def refusal(job: str, *arguments: str) -> str:
    """What `python jobs/<job>.py ...` prints before it gives up, by its `main` in this process: a new one takes seconds
    to import everything. That such an error is one line and status 2 is in tests/test_command_line.py."""
    main, said = importlib.import_module(f"jobs.{job}").main, io.StringIO()
    argv, environment = [f"jobs/{job}.py", *arguments], {**without_ray(), "COLUMNS": "200"}
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", argv))
        stack.enter_context(mock.patch.dict(os.environ, environment, clear=True))
        stack.enter_context(contextlib.redirect_stdout(said))
        stack.enter_context(contextlib.redirect_stderr(said))
        try:
            main()
        except TpnRayError as error:
            return f"{said.getvalue()}{error}"
        except SystemExit as left:  # of a flag that is not known
            assert left.code == 2
            return said.getvalue()
    raise AssertionError(f"{' '.join(argv)} was not refused; it printed:\n{said.getvalue()}")
