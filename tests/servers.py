"""Real servers for tests: S3 (SeaweedFS) and MLflow, each a context manager on free loopback ports."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ACCESS_KEY = "testkey"
SECRET_KEY = "testsecret123"
START_SECONDS = 180.0  # a shared test machine can be slow
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class S3Server:
    """A running S3-compatible server with one empty bucket."""

    endpoint_url: str
    access_key: str
    secret_key: str
    bucket: str

    @property
    def environment(self) -> dict[str, str]:
        """The AWS variables that lead a client here."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextlib.contextmanager
def s3_server(folder: Path, *, bucket: str = "videos", ip: str = "127.0.0.1") -> Iterator[S3Server]:
    """Run `weed mini` with its data in `folder`. Up in about a second; stopped by its process id."""
    folder.mkdir(parents=True, exist_ok=True)
    master, volume, filer, s3, admin = _ports_for_seaweedfs(5)
    command = [str(Path(sys.executable).parent / "weed"), "mini", f"-dir={folder}"]
    command += [f"-ip={ip}", f"-ip.bind={ip}", f"-bucket={bucket}"]
    command += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}"]
    command += [f"-admin.port={admin}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"]
    command += ["-master.telemetry=false"]  # by default it reports to an outside host
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    server = S3Server(f"http://{ip}:{s3}", ACCESS_KEY, SECRET_KEY, bucket)
    with _running(command, folder / "weed.log", {**os.environ, **keys}) as process:
        _wait_until(lambda: _bucket_answers(server), process, folder / "weed.log")
        yield server


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Run `mlflow server` on SQLite with artefacts in `folder`; yields its URL. Stops it with its workers."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # else it keeps many consumers of jobs of its own busy
    with _running(command, folder / "mlflow.log", environment) as process:
        _wait_until(lambda: _http_status(f"{url}/health") == 200, process, folder / "mlflow.log")
        yield url


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _ports_for_seaweedfs(count: int) -> list[int]:
    """Free ports whose gRPC twins (port + 10000, SeaweedFS's rule) are free too."""
    ports: list[int] = []
    candidate = 20000 + os.getpid() % 20000
    while len(ports) < count:
        candidate = 20000 + (candidate - 20000 + 1) % 25000
        if _is_free(candidate) and _is_free(candidate + 10000):
            ports.append(candidate)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _running(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, so that its children stop with it."""
    if not Path(command[0]).exists():
        raise RuntimeError(f"{command[0]} is not installed; run pip install -e '.[test]'")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=log.parent, start_new_session=True
        )
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    process.wait()


def _wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            state = "did not answer" if process.poll() is None else f"ended with {process.returncode}"
            raise RuntimeError(f"the server {state}; the end of {log}:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.1)


def _http_status(url: str) -> int | None:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            status: int = response.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
    return status


def _bucket_answers(server: S3Server) -> bool:
    """Whether the bucket takes an object: the port answers before the store behind it is ready."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    if _http_status(server.endpoint_url) is None:
        return False
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, read_timeout=5),
    )
    try:
        client.put_object(Bucket=server.bucket, Key="ready", Body=b"")
        client.delete_object(Bucket=server.bucket, Key="ready")
    except (ClientError, BotoCoreError):
        return False
    return True
