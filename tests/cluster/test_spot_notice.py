"""EC2's notice of a spot machine's end, read from a server like the machine's own, told to a real Ray."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from cluster import spot_notice
from tests.cluster.manifests import ROOT
from tests.ray_head import ray_head

TOKEN = "token-of-the-machine"
NOTICE = "/latest/meta-data/spot/instance-action"


class Machine:
    """What its metadata service knows."""

    def __init__(self) -> None:
        self.notice: dict[str, str] | None = None
        self.looks = 0
        self.status = 0
        """Above 0: what it answers to everything."""


@contextlib.contextmanager
def metadata_service(machine: Machine) -> Iterator[str]:
    """An instance metadata service, version 2: nothing without a token."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            known = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
            self._answer(200 if known else 400, TOKEN)

        def do_GET(self) -> None:
            machine.looks += 1
            if self.headers["X-aws-ec2-metadata-token"] != TOKEN:
                self._answer(401, "")
            elif self.path != NOTICE or machine.notice is None:
                self._answer(404, "")
            else:
                self._answer(200, json.dumps(machine.notice))

        def _answer(self, status: int, text: str) -> None:
            self.send_response(machine.status or status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def in_two_minutes() -> dict[str, str]:
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=120)
    return {"action": "terminate", "time": end.strftime("%Y-%m-%dT%H:%M:%SZ")}


def test_no_notice_and_then_one() -> None:
    machine = Machine()
    with metadata_service(machine) as url:
        assert spot_notice.read_notice(url) is None
        machine.notice = in_two_minutes()
        assert spot_notice.read_notice(url) == machine.notice


def test_a_service_in_trouble_is_no_notice(capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine()
    machine.status = 503
    with metadata_service(machine) as url:
        assert spot_notice.read_notice(url) is None
    assert "the metadata service answers 503" in capsys.readouterr().out
    assert spot_notice.read_notice(url) is None  # gone
    assert "does not answer" in capsys.readouterr().out


def test_the_time_that_is_left() -> None:
    notice = {"action": "terminate", "time": "2026-11-23T08:22:00Z"}
    now = datetime.datetime(2026, 11, 23, 8, 20, tzinfo=datetime.UTC)
    assert spot_notice.seconds_left(notice, now) == 110
    assert spot_notice.seconds_left(notice, now + datetime.timedelta(minutes=5)) == 1


@pytest.mark.long
@pytest.mark.cluster
def test_ray_knows_when_the_node_goes() -> None:
    machine = Machine()
    with ray_head(1, {}) as head, metadata_service(machine) as url, contextlib.ExitStack() as started:

        def start(*arguments: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env={**head.environment, "RAY_ADDRESS": head.address},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            started.enter_context(process)
            started.callback(process.kill)
            return process

        work = start("-c", WORK)  # a node without any goes at once
        assert work.stdout
        assert any(line.strip() == "works" for line in work.stdout)
        watcher = start(str(ROOT / "cluster" / "spot_notice.py"), "--address", head.address, "--metadata-url", url)
        deadline = time.monotonic() + 60
        while machine.looks == 0 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert watcher.poll() is None  # it looked, and waits
        machine.notice = in_two_minutes()
        output, _ = watcher.communicate(timeout=150)
        assert watcher.returncode == 0, output
        assert "notice: terminate" in output
        told, _ = start("-c", DRAINING).communicate(timeout=60)
    (deadline_ms,) = json.loads(told.splitlines()[-1]).values()
    assert time.time() - 60 < deadline_ms / 1000 < time.time() + 120


WORK = """
import ray, time
ray.init(log_to_driver=False)
@ray.remote
class Work:
    def begin(self):
        return "works"
actor = Work.remote()
print("\\n" + ray.get(actor.begin.remote()), flush=True)
time.sleep(300)
"""

DRAINING = """
import json, os
from ray._raylet import GcsClient
print(json.dumps(GcsClient(address=os.environ["RAY_ADDRESS"]).get_draining_nodes()))
"""
