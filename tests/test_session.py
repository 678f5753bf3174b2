"""A Ray that a job starts for itself is for this machine alone, or is not started and says why."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile

import pytest
import ray

from tests.jobs.processes import ROOT, without_ray
from tpn_ray import session
from tpn_ray.errors import ResourceError

PROGRAM = """
import json, psutil, ray
from tpn_ray import session
session.connect(None, workers_cpus=1, decode_cpus=1)
ray.get(ray.remote(lambda: 1).remote())
found = []
for process in psutil.Process().children(recursive=True):
    try:
        found += [(process.name(), one.laddr.ip) for one in process.net_connections("inet") if one.status == "LISTEN"]
    except psutil.NoSuchProcess:
        pass
session.disconnect()
print(json.dumps(found))
"""


@pytest.mark.cluster
def test_everything_listens_on_the_loopback_address() -> None:
    sessions = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            env={**without_ray(), "RAY_TMPDIR": sessions},
            check=False,
            capture_output=True,
            text=True,
            timeout=240,
        )
    finally:
        shutil.rmtree(sessions, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    listening = json.loads(done.stdout.splitlines()[-1])
    assert {"gcs_server", "raylet"} <= {name for name, _ in listening}
    assert [one for one in listening if not one[1].startswith(("127.", "::1", "::ffff:127."))] == []


def test_a_ray_that_cannot_start_is_one_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that is too busy: Ray raises a bare Exception then."""

    def init(**flags: object) -> None:
        raise Exception("The current node timed out during startup.\nSecond line")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray._private.ray_constants, "ENABLE_RAY_CLUSTER", True)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ResourceError, match=r"could not be started .* timed out during startup.\nIs it busy"):
        session.connect(None, workers_cpus=1, decode_cpus=1)
