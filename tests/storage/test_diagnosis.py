"""What every failure of a store says, in one clear sentence, and whether it may pass; clocks."""

from __future__ import annotations

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.servers import S3Server, free_port
from tests.storage.stores import nowhere, point_to, said
from tpn_ray import storage
from tpn_ray.errors import ConfigError, NotFoundError, StorageError
from tpn_ray.storage.diagnosis import explain, heard, may_pass
from tpn_ray.storage.s3 import UNREACHABLE


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"AWS_ACCESS_KEY_ID": "wrong"}, "InvalidAccessKeyId: .*check AWS_ACCESS_KEY_ID"),
        ({"AWS_SECRET_ACCESS_KEY": "a secret mistyped"}, "SignatureDoesNotMatch: .*check AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no credentials were found; set AWS_ACCESS_KEY_ID"),
    ],
)
def test_wrong_credentials(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], message: str
) -> None:
    point_to(s3, monkeypatch, **changes)
    uri = f"s3://{s3.bucket}/x"
    acts = (storage.read_bytes, storage.list_files, storage.check_readable, storage.check_writable)
    for act in (*acts, lambda uri: storage.create(uri, b"x")):
        with pytest.raises(StorageError, match=message) as error:
            act(uri)
        assert uri in said(error)
        assert s3.endpoint_url in said(error)


@pytest.mark.cluster
def test_a_missing_bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to(s3, monkeypatch)
    for act in (storage.read_bytes, storage.list_files, storage.check_readable):
        with pytest.raises(
            NotFoundError, match=r"NoSuchBucket: there is no bucket 'no-such-bucket'|nothing at s3://no-such"
        ) as error:
            act("s3://no-such-bucket/x")
        assert s3.endpoint_url in said(error)


@pytest.mark.timeout(40)
@pytest.mark.parametrize("kind", ["refused", "unknown host", "silent"])
def test_a_wrong_endpoint_fails_soon_at_the_start(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Although the process would wait for minutes."""
    monkeypatch.setattr("tpn_ray.storage.files.CHECK_SECONDS", 1.0)
    monkeypatch.setattr("tpn_ray.storage.s3.REQUEST_SECONDS", 1.0)
    monkeypatch.setattr("tpn_ray.storage.s3.CONNECT_SECONDS", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # takes connections and never answers
        url = {
            "refused": f"http://127.0.0.1:{free_port()}",
            "unknown host": "http://no-such-host.invalid",
            "silent": f"http://127.0.0.1:{silent.getsockname()[1]}",
        }[kind]
        point_to(S3Server(url, "key", "hidden", "bucket"), monkeypatch)
        checks = [storage.check_readable, storage.check_writable]
        for check in checks[: 1 if kind == "silent" else 2]:  # the SDK is slow to give up writing
            with pytest.raises(StorageError, match=r"no answer .*check AWS_ENDPOINT_URL") as error:
                check("s3://bucket/x")
            assert url in said(error)


def test_an_endpoint_needs_its_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")
    with pytest.raises(ConfigError, match="must begin with http://"):
        storage.read_bytes("s3://bucket/x")


def test_an_object_that_is_not_there_stays_so_when_the_store_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it was asked why: a video that is missing is no fault of the store."""
    nowhere(monkeypatch)
    found = explain("s3://bucket/x", "read", FileNotFoundError("Path does not exist 'bucket/x'"))
    assert isinstance(found, NotFoundError)


@pytest.mark.parametrize(
    ("words", "code", "passes"),
    [
        ("NETWORK_CONNECTION during GetObject operation: curlCode: 7, Could not connect to server", UNREACHABLE, True),
        ("NETWORK_CONNECTION during HeadObject operation: curlCode: 6, Could not resolve hostname", UNREACHABLE, True),
        ("NETWORK_CONNECTION during PutObject operation: curlCode: 28, Timeout was reached", UNREACHABLE, True),
        ("SLOW_DOWN during GetObject operation: Please reduce your request rate.", "SLOW_DOWN", True),
        ("INTERNAL_FAILURE during PutObject operation: We encountered an internal error.", "INTERNAL_FAILURE", True),
        ("UNKNOWN (HTTP status 503) during HeadObject operation: No response body.", "UNKNOWN", True),
        ("UNKNOWN (HTTP status 429) during HeadObject operation: No response body.", "UNKNOWN", True),
        ("UNKNOWN (HTTP status 301) during HeadObject operation: No response body.", "UNKNOWN", False),
        ("UNKNOWN (HTTP status 400) during HeadObject operation: No response body.", "UNKNOWN", False),
        ("ACCESS_DENIED during HeadObject operation: No response body.", "ACCESS_DENIED", False),
        ("NO_SUCH_BUCKET during ListObjectsV2 operation: timeout slowdown curlCode: 7,", "NO_SUCH_BUCKET", False),
    ],
)
def test_what_kind_of_failure_it_is(words: str, code: str, passes: bool) -> None:
    answer = heard(OSError(f"When reading 'a slow_down/x' in bucket 'timeout': AWS Error {words}"))
    assert (answer.code, may_pass(answer)) == (code, passes)


def test_what_pyarrow_says_of_other_things_lasts() -> None:
    assert not may_pass(heard(FileNotFoundError("Path does not exist 'bucket/connection refused'")))


@pytest.mark.cluster
def test_a_stores_clock_is_read_even_where_it_refuses(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for secret in (s3.secret_key, "wrong"):
        point_to(s3, monkeypatch, AWS_SECRET_ACCESS_KEY=secret)
        skew = storage.clock_skew_seconds(f"s3://{s3.bucket}/x")
        assert skew is not None
        assert abs(skew) < 60
    assert storage.clock_skew_seconds("/tmp") is None


def test_a_clock_that_is_an_hour_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    class AnHourAhead(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(time.time() + 3600)

    with HTTPServer(("127.0.0.1", 0), AnHourAhead) as store:
        threading.Thread(target=store.handle_request, daemon=True).start()
        point_to(S3Server(f"http://127.0.0.1:{store.server_port}", "key", "hidden", "bucket"), monkeypatch)
        skew = storage.clock_skew_seconds("s3://bucket/x")
    assert skew is not None
    assert -3660 < skew < -3540


def test_a_store_that_is_not_there_has_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere(monkeypatch)
    with pytest.raises(StorageError, match="cannot ask http.* for its time: no answer"):
        storage.clock_skew_seconds("s3://bucket/x")
