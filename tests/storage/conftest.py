"""An environment without an account, and empty places on a disk and on a real S3 server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.servers import S3Server
from tests.storage.stores import point_to
from tpn_ray import storage


@pytest.fixture(autouse=True)
def no_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the machine's own account reaches a test."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv(storage.PATIENCE, "0")  # so that what a test sets does not outlive it
    monkeypatch.delenv(storage.PATIENCE)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.cluster)])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place to write to."""
    if request.param == "local":
        return str(tmp_path)
    server: S3Server = request.getfixturevalue("s3")
    point_to(server, monkeypatch)
    return f"s3://{server.bucket}/{tmp_path.name}"
