"""What the tests of storage share: stores to point to, and what an error said."""

from __future__ import annotations

import pytest

from tests.servers import S3Server, free_port
from tpn_ray.errors import StorageError


def point_to(server: S3Server, monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    """Set the variables that name a store and its credentials."""
    for name, value in {**server.environment, **changes}.items():
        monkeypatch.setenv(name, value)


def nowhere(monkeypatch: pytest.MonkeyPatch) -> str:
    """Point to a store that is not there, and return its address."""
    server = S3Server(f"http://127.0.0.1:{free_port()}", "key", "hidden", "bucket")
    point_to(server, monkeypatch)
    return server.endpoint_url


def said(error: pytest.ExceptionInfo[StorageError]) -> str:
    """Return the text of an error, which is one line without a secret."""
    text = str(error.value)
    assert "secret" not in text.lower().replace("aws_secret_access_key", "").replace("the secret does", "")
    assert "\n" not in text
    return text
