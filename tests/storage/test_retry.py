"""How long a store that is away is waited for, and what is said of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faulty_proxy import OUTAGES, faulty_proxy
from tests.servers import S3Server
from tests.storage.stores import nowhere, point_to, said
from tpn_ray import storage
from tpn_ray.errors import ConfigError, NotFoundError, StorageError
from tpn_ray.storage.retry import next_wait


def waits(patience: float, jitter: float) -> list[float]:
    """All waits of an operation whose attempts fail at once."""
    waited: list[float] = []
    while (wait := next_wait(len(waited) + 1, sum(waited), patience, jitter)) is not None:
        waited.append(wait)
    return waited


def test_retries_are_bounded_by_time_and_back_off() -> None:
    assert waits(30, jitter=1.0) == [0.5, 1, 2, 4, 8, 10, 4.5]
    assert waits(300, jitter=0.5)[:7] == [0.25, 0.5, 1, 2, 4, 5, 5]
    assert sum(waits(300, jitter=0.5)) == 300  # the last attempt comes when the patience ends
    assert waits(0, jitter=1.0) == []
    assert next_wait(2000, 100, 300, 0.5) == 5


def test_patience_is_set_for_a_process_or_shortened_for_a_block() -> None:
    assert storage.patience_seconds() == storage.PATIENCE_SECONDS
    with storage.patience(5):
        assert storage.patience_seconds() == 5
        storage.set_patience(2)
        assert storage.patience_seconds() == 2
    assert os.environ[storage.PATIENCE] == "2"
    with pytest.raises(ConfigError, match="storage_seconds=-1 must be 0"):
        storage.set_patience(-1)


@pytest.mark.cluster
@pytest.mark.parametrize("outage", OUTAGES)
def test_every_operation_outlives_an_outage(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outage: str
) -> None:
    point_to(s3, monkeypatch)
    monkeypatch.setattr("tpn_ray.storage.s3.REQUEST_SECONDS", 1.0)
    monkeypatch.setattr("tpn_ray.storage.retry.LONGEST_WAIT_SECONDS", 1.0)
    monkeypatch.setattr("tpn_ray.storage.retry.TELL_SECONDS", 2.0)
    folder, data, large = f"s3://{s3.bucket}/outage-{outage}", os.urandom(200_000), os.urandom(20_000_000)
    for name in ("a/kept", "gone", "removed/x"):
        storage.write_bytes(storage.join(folder, name), data)
    kept, told, failed = storage.join(folder, "a/kept"), list[str](), list[Exception]()
    monkeypatch.setattr(
        "tpn_ray.storage.retry.explain", lambda *about: failed.append(about[2]) or StorageError("not outlived")
    )
    with faulty_proxy(s3) as proxy, ThreadPoolExecutor(10) as pool:
        point_to(s3, monkeypatch, AWS_ENDPOINT_URL=proxy.url)
        storage.tell_outages(told.append)
        assert storage.read_range(kept, 0, 10) == data[:10]  # the object stays open
        proxy.go_away(outage)
        acts: list[Callable[[], object]] = [
            lambda: storage.read_bytes(kept),
            lambda: storage.read_range(kept, 1000, 5),
            lambda: storage.download(kept, tmp_path / "copy", max_bytes=10**6),
            lambda: storage.write_bytes(storage.join(folder, "b/small"), data),
            lambda: storage.write_bytes(storage.join(folder, "b/large"), large),
            lambda: storage.exists(kept),
            lambda: [file.uri for file in storage.list_files(storage.join(folder, "a"))],
            lambda: storage.delete_file(storage.join(folder, "gone")),
            lambda: storage.delete_folder(storage.join(folder, "removed")),
        ]
        under_way = [pool.submit(act) for act in acts]
        time.sleep(4)
        assert not any(one.done() for one in under_way)
        proxy.come_back()
        found = [one.result(timeout=60) for one in under_way]
        storage.exists(kept)
    assert not failed
    assert found == [data, data[1000:1005], None, None, None, True, [kept], None, None]
    point_to(s3, monkeypatch)
    assert (tmp_path / "copy").read_bytes() == data
    assert storage.read_bytes(storage.join(folder, "b/large")) == large
    names = [file.uri.removeprefix(f"{folder}/") for file in storage.list_files(folder)]
    assert names == ["a/kept", "b/large", "b/small"]
    assert told == [
        f"storage at {proxy.url} does not answer or refuses requests; waiting up to 300 s (--storage-seconds)",
        f"storage at {proxy.url} answers again",
    ]


@pytest.mark.parametrize("seconds", [0, 1])
def test_a_store_that_stays_away_is_an_error_when_the_patience_ends(
    monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    nowhere(monkeypatch)
    storage.set_patience(seconds)
    begin = time.monotonic()
    with pytest.raises(StorageError, match="no answer") as error:
        storage.write_bytes("s3://bucket/x", b"1")
    assert time.monotonic() - begin >= seconds
    assert ("times in" in said(error)) == (seconds == 1)


@pytest.mark.cluster
def test_what_lasts_is_asked_for_once(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with faulty_proxy(s3) as proxy:
        point_to(s3, monkeypatch, AWS_ENDPOINT_URL=proxy.url)
        with pytest.raises(NotFoundError) as error:
            storage.read_bytes(f"s3://{s3.bucket}/none")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(StorageError, match="SignatureDoesNotMatch") as wrong:
            storage.list_files(f"s3://{s3.bucket}")
    assert "times in" not in said(error) + said(wrong)
