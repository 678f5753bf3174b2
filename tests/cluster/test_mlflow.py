"""The tracking server of the manifests: its very command, on loopback, called as the jobs call it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.cluster.manifests import environment, of_kind, rendered, settings
from tests.ray_head import BIN
from tests.servers import free_port

START_SECONDS = 180.0


SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"


def status(port: int, host: str, path: str = SEARCH) -> int:
    """What it answers to a call by this name; 0: nothing."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    request.add_header("Host", host)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.mark.cluster
def test_it_answers_the_jobs_and_no_stranger(tmp_path: Path) -> None:
    (deployment,) = of_kind(rendered("mlflow"), "Deployment")
    (server,) = deployment["spec"]["template"]["spec"]["containers"]
    port = free_port()
    here = {"--port=5000": f"--port={port}", "--host=0.0.0.0": "--host=127.0.0.1", "--workers=2": "--workers=1"}
    command = [here.get(word, word).replace("/data", str(tmp_path)) for word in server["command"]]
    assert set(here) < set(server["command"])
    name = settings()["MLFLOW_TRACKING_URI"].removeprefix("http://")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            env={**os.environ, **environment(server)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while status(port, name) == 0 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        probe = server["readinessProbe"]["httpGet"]["path"]
        probed = status(port, "10.0.0.7:5000", probe)  # by the pod's address, as Kubernetes does
        answers = {host: status(port, host) for host in (name, f"localhost:{port}", "elsewhere.example")}
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert probed == 200
    assert answers == {name: 200, f"localhost:{port}": 200, "elsewhere.example": 403}, (tmp_path / "log").read_text()
