"""What every job shares: flags from dataclasses, one clear line for an error, a progress line. Runs on the driver."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

import psutil
import tyro

from tpn_ray import storage
from tpn_ray.errors import ConfigError, TpnRayError
from tpn_ray.redaction import redacted

T = TypeVar("T")

FAULT, USER_ERROR, INTERRUPTED = 1, 2, 130
LEAVE_SECONDS = 30.0


def run_job(job: Callable[[], int | None], leave: Callable[[], None]) -> None:
    """Run a job's main function, which may give a status, then `leave`; a TpnRayError is its message and status 2,
    never a traceback. What is printed of an error holds no secret.

    Until a job has joined Ray it checks what it was given, and storage that does not answer ends it within seconds;
    from then on storage is waited for (`session.connect`).
    """
    storage.set_patience(storage.CHECK_SECONDS)
    signal.signal(signal.SIGTERM, _interrupt)  # `ray job stop` sends it, and waits 3 s
    try:
        status = job() or 0
    except TpnRayError as error:
        _end(USER_ERROR, f"\n{type(error).__name__}: {redacted(str(error))}")
    except KeyboardInterrupt:
        _end(INTERRUPTED, "\nstopped; the same command with the same --name (or --out) goes on where this one stopped")
    except BrokenPipeError:  # who reads the output may have had enough, as in `| head`
        _end(FAULT, "" if _nobody_reads() else redacted(traceback.format_exc()))
    except Exception:  # a fault of the program
        _end(FAULT, redacted(traceback.format_exc()))
    if status:
        _end(status)
    leaving = threading.Thread(target=leave, daemon=True)
    leaving.start()
    leaving.join(LEAVE_SECONDS)  # a cluster that does not answer must not hold the job's exit


def _end(status: int, message: str = "") -> NoReturn:
    """End this process now, without leaving the cluster first.

    Threads may still wait for runs that were given up. While a driver leaves, such a thread joins again, or Ray ends
    the process with a status of its own. A driver that is gone is noticed: a cluster frees what it held, and the kernel
    ends a Ray that it started.
    """
    if message:
        print(message, file=sys.stderr)
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.flush()
    _kill_what_outlives_a_raylet()
    os._exit(status)


def _nobody_reads() -> bool:
    """Whether standard output is a pipe whose other end is closed."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _kill_what_outlives_a_raylet() -> None:
    """The agents of a raylet that dies look for it for a minute and a half. It is frozen first: its own death, or that
    of its agents, would make it end this process."""
    with contextlib.suppress(psutil.Error):
        for raylet in psutil.Process().children():
            if raylet.name() == "raylet":
                raylet.suspend()
                for process in raylet.children(recursive=True):
                    process.kill()


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def parse(default: T, arguments: Sequence[str], *, program: str, description: str) -> T:
    """Flags for every field of a dataclass, with help from its docstrings. A value that cannot be is a ConfigError."""
    return tyro.cli(type(default), default=default, args=list(arguments), prog=program, description=description)


def take_recipe_name(arguments: Sequence[str], known: Sequence[str], program: str) -> tuple[str, list[str]]:
    """The recipe's name, which comes first and decides the defaults of all flags, and the other arguments."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            f"usage: {program} RECIPE [flags]\n\nrecipes: {', '.join(known)}\n\n{program} RECIPE --help shows the flags"
        )
        raise SystemExit(0 if arguments else USER_ERROR)
    if arguments[0] not in known:
        raise ConfigError(f"unknown recipe {arguments[0]!r}; known: {', '.join(known)}")
    return arguments[0], list(arguments[1:])


def fresh_name(recipe: str) -> str:
    """A run name that was not used before: reusing one means going on with that run."""
    return f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
