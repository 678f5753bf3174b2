"""A real Ray head for tests: own ports, own folder, own token, stopped by its own processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.servers import free_port

BIN = Path(sys.executable).parent
START_SECONDS = 300
MARK = "TPN_RAY_TEST_HEAD"
"""Variable that all processes of a head inherit, and by which they are found again: some rename themselves."""


@dataclass(frozen=True)
class RayHead:
    """Where it answers, and the environment that a client needs."""

    jobs_url: str
    address: str
    """Of its GCS."""
    environment: dict[str, str]
    folder: Path
    """Short, and gone with the head, as are all processes that inherit its environment."""


@contextlib.contextmanager
def ray_head(
    cpus: int, environment: Mapping[str, str], *, ip: str = "127.0.0.1", port: int = 0, flags: Sequence[str] = ()
) -> Iterator[RayHead]:
    """`ray start --head` with `cpus` CPUs; its workers inherit `environment`."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # short: socket paths end at 107 characters
    port, dashboard = port or free_port(), free_port()
    own = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    own |= {"PATH": f"{BIN}:{os.environ['PATH']}", MARK: str(folder), **environment}
    command = [str(BIN / "ray"), "start", "--head", f"--node-ip-address={ip}", f"--port={port}"]
    command += [f"--dashboard-host={ip}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"]
    command += [f"--num-cpus={cpus}", f"--object-store-memory={300 * 1024**2}", "--disable-usage-stats"]
    # The agent takes jobs; on its default port another Ray of this machine may listen.
    command += [f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}", *flags]
    try:
        started = subprocess.run(command, check=False, env=own, capture_output=True, text=True, timeout=START_SECONDS)
        if started.returncode:
            raise RuntimeError(f"ray start failed:\n{started.stdout}\n{started.stderr}")
        yield RayHead(f"http://{ip}:{dashboard}", f"{ip}:{port}", own, folder)
    finally:
        stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


def stop(folder: Path) -> None:
    """End every process that belongs to the Ray session in `folder`, and only those."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        marked = [process for process in psutil.process_iter(["environ"]) if belongs(process, folder)]
        if not marked:
            return
        # Some that are below a marked one write their title over their environment: found as long as it lives.
        mine = {process.pid: process for process in marked}
        for process in marked:
            with contextlib.suppress(psutil.NoSuchProcess):
                mine |= {below.pid: below for below in process.children(recursive=True)}
        for process in mine.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(mine.values(), timeout=5)


def belongs(process: psutil.Process, folder: Path) -> bool:
    return process.pid != os.getpid() and (process.info["environ"] or {}).get(MARK) == str(folder)
