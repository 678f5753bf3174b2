"""A job as the process that a user starts, with everything below it: for attacks on it. Runs on one machine."""

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
    """`python jobs/....py ...`, given again and again; its output is appended to a file.

    The variables of `environment` are set beside those of this process. Without RAY_ADDRESS in it, the job starts a
    Ray of its own.
    """

    def __init__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.command, self.log, self.environment = [sys.executable, *arguments], log, environment or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._log_begin = 0
        self.starts = 0
        self.over = False
        """Whether it has ended by itself, and well."""

    def keep_running(self) -> bool:
        """Give the command if it does not run; False if it is over. Raises TrainingError if it gave up."""
        if self._process is not None and self._process.poll() is not None:
            if self._process.returncode not in (0, -signal.SIGKILL) and not self._was_busy():
                raise TrainingError(f"the job stopped with status {self._process.returncode}; see {self.log}")
            self.over = self._process.returncode == 0
            self._process = None
        if self._process is None and not self.over:
            inherited = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
            self._log_begin = self.log.stat().st_size if self.log.exists() else 0
            with self.log.open("ab") as log, _heeding_interrupts():
                # A group of its own, as a terminal gives it.
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
        """Whether Ray found the machine too busy to start on, which it gives half a minute."""
        said = self.log.read_bytes()[self._log_begin :].decode(errors="replace")
        return TOO_BUSY in said

    def below(self, titles: tuple[str, ...]) -> list[psutil.Process]:
        """Processes below it whose title begins with one of `titles`, by id."""
        found = []
        for process in self.children():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if " ".join(process.cmdline()).startswith(titles):
                    found.append(process)
        return sorted(found, key=lambda process: process.pid)

    @property
    def pid(self) -> int:
        """Of the process that runs, or ran last; 0 if none did."""
        return self._process.pid if self._process else 0

    def wait(self, seconds: float) -> int | None:
        """Status of its process, None if it still runs after so many seconds."""
        if self._process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def freeze(self, *, below: bool) -> Callable[[], None]:
        """SIGSTOP, and to all below if asked; returns what lets them go on."""
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
        """SIGKILL, and to all below, which would end by itself some time later; False if it does not run."""
        if self._process is None or self._process.poll() is not None:
            return False
        children = self.children()
        self._process.kill()
        self._process.wait(END_SECONDS)
        if below:
            end(children)
        return True

    def interrupt(self) -> None:
        """What Ctrl-C does: SIGINT to its group. Raises TrainingError if it does not end as it should."""
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
        """All processes below it."""
        if self._process is None or self._process.poll() is not None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self._process.pid).children(recursive=True)
        return []


def end(processes: Sequence[psutil.Process]) -> None:
    """SIGKILL to processes, and wait until they are gone."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=END_SECONDS)


@contextlib.contextmanager
def _heeding_interrupts() -> Iterator[None]:
    """What a shell starts with & ignores Ctrl-C, and so would all below it, also a job that Ctrl-C is to stop."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
