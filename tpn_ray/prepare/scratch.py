"""Temporary disk space on a worker that does not long outlive its process, however that ends. Runs on Ray Data
workers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "tpn_ray-prepare-"


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Create a folder, and remove it at the end. Those left on this machine by killed processes are removed first."""
    remove_abandoned()
    folder, held = _make()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def remove_abandoned() -> None:
    """Remove the folders that no process holds: a lock ends with its process, even by SIGKILL."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # held, another user's, or gone by now
            held = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(held)


def _make() -> tuple[Path, int]:
    """Return a new folder and the descriptor that holds it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        held = os.open(folder, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX)
        if folder.exists():
            return folder, held
        os.close(held)  # another process took it for abandoned before it was locked
