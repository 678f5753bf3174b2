"""The process of a job: how it starts, how it is stopped, and how it ends. Runs on the driver.

Every job imports this module first: the other imports take seconds, and Ctrl-C or SIGTERM must end a job with a
one-line message from the very start.
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
"""Base of the exit status of a job stopped by a signal. The signal's number is added, as in a shell: 130 for Ctrl-C,
143 for SIGTERM, 141 for output that nobody reads on."""
GRACE_SECONDS = 2.0
"""Time from a signal to the end of the process. `ray job stop` kills the process 3 s after it sends SIGTERM."""
LEAVE_SECONDS = 30.0
_PRINT_SECONDS = 0.5


class _Process:
    """The state of this process, which runs one job."""

    is_job = running = watched = False
    stopped_by = 0
    """The signal that is stopping the job, once one has arrived."""
    goes_on = ""
    """What running the same command again does after a stop, as a clause."""
    ending = threading.Lock()


def run_job(job: Callable[[], int | None], leave: Callable[[], None]) -> None:
    """Run a job's main function, which may return a status, then `leave`.

    A TpnRayError is printed as its message and ends the process with status 2, without a traceback. Ctrl-C and SIGTERM
    raise KeyboardInterrupt in the job, which has `GRACE_SECONDS` to clean up. From here on, secrets are removed from
    everything that is printed.
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
            leaving.join(LEAVE_SECONDS)  # an unresponsive cluster must not delay the job's exit
    except BaseException as error:
        _end_with(error)
    if status:
        _end(status)


def command() -> list[str]:
    """Return the words of this job's command as they are submitted to a cluster; none if this process is no job."""
    program = Path(sys.argv[0])
    return ["python", f"{program.parent.name}/{program.name}", *sys.argv[1:]] if _Process.is_job else []


def goes_on(flags: str = "") -> None:
    """Note that rerunning this command with `flags` resumes the job; the job says so when it is stopped."""
    with_flags = f" with {redacted(flags)}" if flags else ""
    _Process.goes_on = f"the same command{with_flags} resumes where this one stopped"


def heed_signals() -> None:
    """Make Ctrl-C and SIGTERM stop this job.

    Call this again after `ray.init`, which installs a handler of its own. It has no effect outside a job's process or
    outside the main thread.
    """
    if not _Process.is_job or threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # a shell makes commands started with & ignore Ctrl-C
            signal.signal(number, _stop)
    if _Process.running and not _Process.watched:
        _Process.watched = True
        arrived, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        threading.Thread(target=_end_after_signal, args=(arrived,), name="signals", daemon=True).start()


# --- stopping


def _stop(number: int, frame: FrameType | None) -> None:
    if _Process.ending.locked():  # an impatient second Ctrl-C
        return
    if not _Process.running:  # an import in progress would turn an exception into an error of its own
        _end(STOPPED + number, "\nstopped before it started")
    _Process.stopped_by = number
    raise KeyboardInterrupt


def _end_after_signal(arrived: int) -> None:
    """End the process some time after a signal, whatever the main thread is doing.

    The main thread may be waiting for storage or Ray, where no exception reaches it, or something may have caught the
    exception.
    """
    while True:
        for number in os.read(arrived, 1):  # blocks for as long as the job runs
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
    if isinstance(error, BrokenPipeError) and _nobody_reads():  # as in `| head`
        _end(STOPPED + signal.SIGPIPE)
    if isinstance(error, Exception):  # a bug in the program
        _end(FAULT, redacted(_traceback(error)))
    raise error


def _end_stopped(number: int) -> NoReturn:
    _end(STOPPED + number, f"\nstopped; {_Process.goes_on or 'the same command starts over'}")


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _end(status: int, message: str = "") -> NoReturn:
    """End this process now, without leaving the cluster first.

    Threads may still be waiting for abandoned runs. When a driver leaves the cluster, such a thread rejoins it, or Ray
    ends the process with a status of its own. Skipping this is safe: a cluster notices that its driver is gone and
    frees what it held, and the kernel ends a Ray that the driver started.
    """
    if not _Process.ending.acquire(timeout=_PRINT_SECONDS):  # another thread is ending it, or hangs
        os._exit(status)
    if message:
        print(message, file=sys.stderr)
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.flush()
    _kill_what_outlives_a_raylet()
    os._exit(status)


def _nobody_reads() -> bool:
    """Return whether standard output is a pipe whose other end is closed."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _kill_what_outlives_a_raylet() -> None:
    """Kill the agents of the raylets of this process, which would look for a dead raylet for a minute and a half.

    The raylet is suspended first: its own death, or that of its agents, would make it end this process.
    """
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
