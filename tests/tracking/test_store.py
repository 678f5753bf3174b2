"""Where runs are tracked: what cannot be used is said at once, and nothing shows a password."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator

import pytest

from tpn_ray import tracking
from tpn_ray.errors import TrackingError
from tpn_ray.tracking import store


@pytest.mark.parametrize("host", ["127.0.0.1:9", "no-such-host.invalid:5000"])
def test_a_server_that_is_down_is_one_clear_error_within_seconds(host: str) -> None:
    begun = time.monotonic()
    with pytest.raises(TrackingError, match=rf"the MLflow store http://\*\*\*@{host} cannot be used: \w") as refused:
        tracking.check(f"http://someone:secret@{host}")
    assert time.monotonic() - begun < 5
    first, second = str(refused.value).splitlines()
    assert len(first) < 120
    assert "secret" not in first
    assert second.startswith("Check --tracking-uri")


@pytest.fixture
def grumpy() -> Iterator[str]:
    """A server that answers everything with 403."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(403)

        do_POST = do_GET  # noqa: N815 - named by the library

        def log_message(self, *about: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_that_refuses_is_named_before_anything_is_made(grumpy: str) -> None:
    with pytest.raises(TrackingError, match="cannot be used: .*403"):
        tracking.check(grumpy)


def test_stores_without_a_server_are_not_made_by_a_check() -> None:
    tracking.check("")
    tracking.check("sqlite:////nowhere/mlflow.db")
    assert store.KNOCK_SECONDS < 5


def test_the_page_is_shown_without_a_password() -> None:
    assert store.page_command("http://user:secret@host:5000") == "open http://host:5000"
    assert "secret" not in store.page_command("postgresql://user:secret@host/mlflow")
    assert "--host 127.0.0.1" in store.page_command("sqlite:///runs/mlflow.db")
