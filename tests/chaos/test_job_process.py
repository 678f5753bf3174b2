"""A job that is attacked is one that a user's Ctrl-C would stop, however the attack was started."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from tests.chaos.job_process import JobProcess

PROGRAM = """
import sys, time
try:
    print("here", flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_an_attack_in_the_background_can_interrupt_its_job(tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = JobProcess(["-c", PROGRAM], log)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under a shell's &
    try:
        assert job.keep_running()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        deadline = time.monotonic() + 60
        while "here" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        job.interrupt()  # raises where the job goes on, or ends with another status than Ctrl-C's
    finally:
        signal.signal(signal.SIGINT, before)
        job.kill()
