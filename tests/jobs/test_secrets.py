"""Planted secrets are nowhere behind a real run: not in its folder, MLflow's store, Ray's logs or what was printed."""

from __future__ import annotations

import base64
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.jobs.processes import run
from tests.servers import mlflow_server

pytestmark = pytest.mark.cluster

USER, URI_PASSWORD = "planted-user", "planted-in-the-uri"
PLANTED = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDPLANTED01",
    "AWS_SECRET_ACCESS_KEY": "planted/secret+key/0123456789",
    "AWS_SESSION_TOKEN": "planted-session-token",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-password",
    "MLFLOW_TRACKING_TOKEN": "planted-mlflow-token",
    "RAY_AUTH_TOKEN": "f1a97ed0" * 8,
}
BASIC = base64.b64encode(f"{USER}:{URI_PASSWORD}".encode()).decode()
SECRETS = (*PLANTED.values(), URI_PASSWORD, BASIC)
SMALL = ["--workers", "1", "--loop.epochs", "1", "--loop.batch-clips", "8", "--loop.micro-batch-clips", "4"]


@pytest.fixture
def sessions() -> Iterator[Path]:
    """Where Ray keeps its logs; a short path, since sockets' names end at 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def found_in(folder: Path) -> list[str]:
    """Files that hold a planted secret, and which; Parquet is compressed, and is read."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            if path.suffix == ".parquet":
                content += str(pq.read_table(path).to_pylist()).encode()
            found += [f"{path.relative_to(folder)}: {secret}" for secret in SECRETS if secret.encode() in content]
    return found


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_run_leaves_no_secret(toy_folder: Path, tmp_path: Path, sessions: Path) -> None:
    environment = {**PLANTED, "RAY_TMPDIR": str(sessions)}
    store, runs = tmp_path / "mlflow", tmp_path / "runs"
    with mlflow_server(store) as url:
        uri = url.replace("//", f"//{USER}:{URI_PASSWORD}@")
        flags = ["--data", str(toy_folder), "--storage", str(runs), "--tracking-uri", uri, "--register", "planted"]
        status, output = run("train", "toy", *flags, *SMALL, environment=environment, seconds=500)
    assert status == 0, output
    assert "best checkpoint" in output
    assert "models:/planted/1" in output
    assert not [secret for secret in SECRETS if secret in output], output
    assert list(runs.glob("*/run.json"))
    assert list(sessions.glob("**/logs/*"))
    for folder in (runs, store, sessions):
        assert found_in(folder) == []
