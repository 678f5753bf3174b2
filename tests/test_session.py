"""A Ray that a job starts for itself is for this machine alone, or is not started and says why."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from tests.jobs.processes import ROOT, without_ray
from tests.ray_head import ray_head
from tpn_ray import job, session
from tpn_ray.errors import ConfigError, ResourceError

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


def only_line(*arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """The line that a program prints which has Rays of its own; they say nothing."""
    sessions = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**without_ray(), "RAY_TMPDIR": sessions, "PYTHONPATH": str(ROOT), **(environment or {})},
            check=False,
            capture_output=True,
            text=True,
            timeout=240,
        )
    finally:
        shutil.rmtree(sessions, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    (line,) = done.stdout.splitlines()
    return line


@pytest.mark.cluster
def test_everything_listens_on_the_loopback_address() -> None:
    listening = json.loads(only_line("-c", PROGRAM))
    assert {"gcs_server", "raylet"} <= {name for name, _ in listening}
    assert [one for one in listening if not one[1].startswith(("127.", "::1", "::ffff:127."))] == []


def test_other_lines_are_not_hidden(capfd: pytest.CaptureFixture[str]) -> None:
    with session.without_lines_of("one line"):
        os.write(2, b"this is one line\nanother\n")
    assert capfd.readouterr().err == "another\n"


def test_a_ray_that_cannot_start_is_one_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that is too busy: Ray raises a bare Exception then."""

    def init(**flags: object) -> None:
        raise Exception("The current node timed out during startup.\nSecond line")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray._private.ray_constants, "ENABLE_RAY_CLUSTER", True)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ResourceError, match=r"could not be started .* timed out during startup.\nIs it busy"):
        session.connect(None, workers_cpus=1, decode_cpus=1)


BESIDE = """
import os, subprocess, sys
import ray
from ray.util.state import get_actor
from tpn_ray import session

class Asks:
    def of_myself(self):
        return get_actor(ray.get_runtime_context().get_actor_id()).state

session.connect(None, workers_cpus=1, decode_cpus=1)
if sys.argv[1:] == ["other"]:
    print("ready", flush=True)
    sys.stdin.read()
else:
    alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    other = subprocess.Popen(
        [sys.executable, sys.argv[1], "other"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=alone
    )
    assert any(line.startswith(b"ready") for line in other.stdout)
    print(ray.get(ray.remote(Asks).remote().of_myself.remote()))
    other.communicate()
session.disconnect()
"""


@pytest.mark.long
@pytest.mark.cluster
def test_its_state_is_found_beside_another_ray(tmp_path: Path) -> None:
    """Ray Train's clean-up asks for it from within; where it is not found, a killed controller's CPUs stay taken."""
    program = tmp_path / "beside.py"
    program.write_text(BESIDE)
    assert only_line(str(program), str(program)) == "ALIVE"


AGAIN = """
import os, ray
from tpn_ray import session

session.connect(None, workers_cpus=1, decode_cpus=1)
before = os.environ["RAY_ADDRESS"]
session.connect(None, workers_cpus=1, decode_cpus=3.5)
assert os.environ["RAY_ADDRESS"] != before
cpus = int(ray.cluster_resources()["CPU"])
session.disconnect()
left = {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"} & set(os.environ)
print(cpus, sorted(left), ray.is_initialized())
"""


@pytest.mark.cluster
def test_a_second_job_of_a_process_has_a_ray_that_suits_it() -> None:
    """As `tpn_ray.train` after `tpn_ray.evaluate`; and none of the first is left in the environment."""
    assert only_line("-c", AGAIN) == "8 [] False"


def test_the_address_of_a_dashboard_is_told_how_to_submit(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["python", "jobs/train.py", "toy", "--address", "http://h:8265", "--data", "my videos"]
    monkeypatch.setattr(job, "command", lambda: words)
    for address, variable in (("http://h:8265", ""), ("", "http://h:8265")):
        monkeypatch.setenv("RAY_ADDRESS", variable)
        with pytest.raises(ConfigError, match="http://h:8265 is where a cluster takes jobs") as refused:
            session.connect(address, workers_cpus=1, decode_cpus=1)
    assert str(refused.value).endswith(
        "\n  RAY_ADDRESS=http://h:8265 ray job submit --working-dir . -- python jobs/train.py toy --data 'my videos'"
    )


def test_the_caller_s_own_ray_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "init", lambda **flags: pytest.fail("a second connection"))
    session.connect(None, workers_cpus=1, decode_cpus=1)


@pytest.mark.parametrize("given", [{}, {"env_vars": {"TPN_RAY_STORAGE_SECONDS": "5"}}])
def test_the_caller_s_own_ray_must_be_as_patient_as_asked(
    given: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    context = SimpleNamespace(runtime_env=given)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setenv("TPN_RAY_STORAGE_SECONDS", "300")
    with pytest.raises(ConfigError, match=r"ray\.init\(runtime_env=.*'TPN_RAY_STORAGE_SECONDS': '42'") as refused:
        session.connect(None, workers_cpus=1, decode_cpus=1, storage_seconds=42)
    context.runtime_env = eval(str(refused.value).split("runtime_env=")[1].split(")")[0])  # noqa: S307
    session.connect(None, workers_cpus=1, decode_cpus=1, storage_seconds=42)


PATIENCE = """
import sys
import ray
from tpn_ray import session, storage

@ray.remote(num_cpus=1, runtime_env={"env_vars": {"OF_ITS_OWN": "1"}})
class Worker:
    def ask(self):
        return ray.get(ray.remote(storage.patience_seconds).remote())

session.connect(sys.argv[1], workers_cpus=1, decode_cpus=1, storage_seconds=float(sys.argv[2]))
print(storage.patience_seconds(), ray.get(Worker.remote().ask.remote()))
session.disconnect()
"""


@pytest.mark.long
@pytest.mark.cluster
def test_the_patience_with_storage_reaches_every_process_of_a_job() -> None:
    """Also the tasks of a worker that has an environment of its own, as Ray Train's and Ray Data's are."""
    assert only_line("-c", PATIENCE, "", "42") == "42.0 42.0"
    with ray_head(2, {}) as head:
        assert only_line("-c", PATIENCE, head.address, "42", environment=head.environment) == "42.0 42.0"
