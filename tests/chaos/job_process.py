"""A job as the process that a user starts, with everything below it: the target of attacks. Runs on one machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from tpn_ray.errors import TrainingError

END_SECONDS = 60.0
TOO_BUSY = "Ray could not be started on this machine"
INTERRUPTED = 130
"""Status of a job after Ctrl-C."""


class JobProcess:
    """The command `python jobs/....py ...`, run again and again; its output is appended to a file.

    The variables of `environment` are added to those of this process. Without RAY_ADDRESS among them, the job starts a
    Ray instance of its own.
    """

    def __init__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.command, self.log, self.environment = [sys.executable, *arguments], log, environment or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._log_begin = 0
        self.starts = 0
        self.over = False
        """Whether the job has ended by itself, successfully."""

    def keep_running(self) -> bool:
        """Run the command if it is not running; return False if the job is over. Raises TrainingError if it gave up."""
        if self._process is not None and self._process.poll() is not None:
            if self._process.returncode not in (0, -signal.SIGKILL) and not self._was_busy():
                raise TrainingError(f"the job stopped with status {self._process.returncode}; see {self.log}")
            self.over = self._process.returncode == 0
            self._process = None
        if self._process is None and not self.over:
            inherited = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
            self._log_begin = self.log.stat().st_size if self.log.exists() else 0
            with self.log.open("ab") as log, _heeding_interrupts():
                # A process group of its own, as in a terminal.
                self._process = subprocess.Popen(
                    self.command,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={**inherited, **self.environment},
                )
            self.starts += 1
        return not self.over

    def _was_busy(self) -> bool:
        """Return whether Ray found the machine too busy to start, for which it allows half a minute."""
        said = self.log.read_bytes()[self._log_begin :].decode(errors="replace")
        return TOO_BUSY in said

    def below(self, titles: tuple[str, ...]) -> list[psutil.Process]:
        """List the processes below the job whose title begins with one of `titles`, by id."""
        found = []
        for process in self.children():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if " ".join(process.cmdline()).startswith(titles):
                    found.append(process)
        return sorted(found, key=lambda process: process.pid)

    @property
    def pid(self) -> int:
        """Id of the current or last process; 0 if there was none."""
        return self._process.pid if self._process else 0

    def wait(self, seconds: float) -> int | None:
        """Return the status of the process, or None if it is still running after `seconds`."""
        if self._process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def freeze(self, *, below: bool) -> Callable[[], None]:
        """Send SIGSTOP, also to all processes below if asked, and return a function that resumes them."""
        processes = self.children() if below else []
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.insert(0, psutil.Process(self.pid))
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

        def thaw() -> None:
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()

        return thaw

    def kill(self, *, below: bool = True) -> bool:
        """Send SIGKILL, also to all processes below, which would only end later; return False if it is not running."""
        if self._process is None or self._process.poll() is not None:
            return False
        children = self.children()
        self._process.kill()
        self._process.wait(END_SECONDS)
        if below:
            end(children)
        return True

    def interrupt(self) -> None:
        """Send SIGINT to the group, as Ctrl-C does. Raises TrainingError if the job does not end as it should."""
        if self._process is None or self._process.poll() is not None:
            return
        below = self.children()
        os.killpg(self._process.pid, signal.SIGINT)
        try:
            status = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            raise TrainingError(f"the job did not end within {END_SECONDS:g} s of Ctrl-C; see {self.log}") from None
        _, left = psutil.wait_procs(below, timeout=END_SECONDS)
        if left:
            raise TrainingError(f"{len(left)} process(es) of the job did not end after Ctrl-C; see {self.log}")
        self._process = None
        if status not in (0, INTERRUPTED):
            raise TrainingError(f"Ctrl-C ended the job with status {status}; see {self.log}")

    def children(self) -> list[psutil.Process]:
        """List all processes below the job."""
        if self._process is None or self._process.poll() is not None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self._process.pid).children(recursive=True)
        return []


def end(processes: Sequence[psutil.Process]) -> None:
    """Send SIGKILL to processes and wait until they are gone."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=END_SECONDS)


@contextlib.contextmanager
def _heeding_interrupts() -> Iterator[None]:
    """Make children heed Ctrl-C, which a shell makes commands started with & and everything below them ignore."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
