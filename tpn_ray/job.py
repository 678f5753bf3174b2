"""A job's process: how it begins, how it is stopped, and how it ends. Runs on the driver.

Every job imports this module before all others: those take seconds, and Ctrl-C or SIGTERM must end a job in one line
from its first moments on.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

from tpn_ray import output
from tpn_ray.errors import TpnRayError
from tpn_ray.redaction import redacted

FAULT, USER_ERROR = 1, 2
STOPPED = 128
"""Status of a job that a signal stopped is this plus the signal's number, as in a shell: 130 for Ctrl-C, 143 for
SIGTERM."""
GRACE_SECONDS = 2.0
"""From a signal to the end of the process. `ray job stop` kills 3 s after it sent SIGTERM."""
LEAVE_SECONDS = 30.0
_PRINT_SECONDS = 0.5


class _Process:
    """What is known of this process, which is one job."""

    is_job = running = watched = False
    stopped_by = 0
    """The signal that stops it, once one came."""
    goes_on = ""
    """What the same command does after a stop, as a sentence."""
    ending = threading.Lock()


def run_job(job: Callable[[], int | None], leave: Callable[[], None]) -> None:
    """Run a job's main function, which may return a status, then `leave`.

    A TpnRayError is printed as its message and ends the process with status 2, without a traceback. Ctrl-C and SIGTERM
    raise KeyboardInterrupt in the job, which has `GRACE_SECONDS` to clean up. Nothing that is printed from here on
    holds a secret.
    """
    output.protect()
    from tpn_ray import storage

    storage.set_patience(storage.CHECK_SECONDS)
    _Process.is_job = _Process.running = True
    heed_signals()
    try:
        status = job() or 0
        if not status:
            leaving = threading.Thread(target=leave, daemon=True)
            leaving.start()
            leaving.join(LEAVE_SECONDS)  # a cluster that does not answer must not hold the job's exit
    except BaseException as error:
        _end_with(error)
    if status:
        _end(status)


def goes_on(flags: str = "") -> None:
    """Note that the same command, given these `flags`, goes on where this job stops: it is said when it is stopped."""
    with_flags = f" with {redacted(flags)}" if flags else ""
    _Process.goes_on = f"the same command{with_flags} goes on where this one stopped"


def heed_signals() -> None:
    """Have Ctrl-C and SIGTERM stop this job.

    To be called again after `ray.init`, which puts a handler of its own in place. Has no effect in a process that is no
    job, and in other threads than the main one.
    """
    if not _Process.is_job or threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # what a shell starts with & ignores Ctrl-C
            signal.signal(number, _stop)
    if _Process.running and not _Process.watched:
        _Process.watched = True
        arrived, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        threading.Thread(target=_end_after_signal, args=(arrived,), name="signals", daemon=True).start()


# --- stopping


def _stop(number: int, frame: FrameType | None) -> None:
    if _Process.ending.locked():  # the second Ctrl-C of somebody impatient
        return
    if not _Process.running:  # imports are under way, and would make errors of their own of an exception
        _end(STOPPED + number, "\nstopped before it began")
    _Process.stopped_by = number
    raise KeyboardInterrupt


def _end_after_signal(arrived: int) -> None:
    """End the process some time after a signal, whatever the main thread does then: it may be waiting for storage or
    for Ray, where no exception reaches it, or somebody may have caught the exception."""
    while True:
        for number in os.read(arrived, 1):  # waits for as long as the job runs
            if number in (signal.SIGINT, signal.SIGTERM):
                time.sleep(GRACE_SECONDS)
                _end_stopped(number)


# --- ending


def _end_with(error: BaseException) -> NoReturn:
    if isinstance(error, SystemExit) and error.code == signal.SIGTERM:
        _Process.stopped_by = signal.SIGTERM  # while `ray.init` runs, Ray's own handler exits with this code
    if _Process.stopped_by or isinstance(error, KeyboardInterrupt):
        _end_stopped(_Process.stopped_by or signal.SIGINT)
    if isinstance(error, TpnRayError):
        _end(USER_ERROR, f"\n{type(error).__name__}: {redacted(str(error))}")
    if isinstance(error, BrokenPipeError):  # who reads the output may have had enough, as in `| head`
        _end(FAULT, "" if _nobody_reads() else redacted(_traceback(error)))
    if isinstance(error, Exception):  # a fault of the program
        _end(FAULT, redacted(_traceback(error)))
    raise error


def _end_stopped(number: int) -> NoReturn:
    _end(STOPPED + number, f"\nstopped; {_Process.goes_on or 'the same command begins anew'}")


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _end(status: int, message: str = "") -> NoReturn:
    """End this process now, without leaving the cluster first.

    Threads may still wait for runs that were given up. While a driver leaves, such a thread joins again, or Ray ends
    the process with a status of its own. A driver that is gone is noticed: a cluster frees what it held, and the kernel
    ends a Ray that it started.
    """
    if not _Process.ending.acquire(timeout=_PRINT_SECONDS):  # another thread ends it, or cannot print
        os._exit(status)
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


_main = sys.modules["__main__"]
if _main.__name__ == "__main__" and Path(getattr(_main, "__file__", None) or "").parent.name == "jobs":
    _Process.is_job = True
    heed_signals()
