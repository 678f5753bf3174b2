"""The same behavior on a disk and on a real S3 server, also on one that fails now and then."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tests.faulty_proxy import FAULTS, faulty_proxy
from tests.servers import S3Server
from tests.storage.stores import point_to
from tpn_ray import storage
from tpn_ray.errors import ConfigError, NotFoundError, StorageError
from tpn_ray.storage import StoredFile


def test_bytes_come_back(root: str) -> None:
    uri = storage.join(root, "a", "b ü+%20.bin")
    for data in (b"", b"x", os.urandom(3_000_000)):
        storage.write_bytes(uri, data)
        assert storage.read_bytes(uri) == data
    with pytest.raises(StorageError, match="holds 3000000 bytes, more than the limit of 10"):
        storage.read_bytes(uri, max_bytes=10)


def test_listing(root: str) -> None:
    for name in ("b/2.mp4", "a/1.MP4", "a/deep/3.webm", "a/notes.txt"):
        storage.write_bytes(storage.join(root, name), name.encode())
    names = [file.uri.removeprefix(root + "/") for file in storage.list_files(root)]
    assert names == ["a/1.MP4", "a/deep/3.webm", "a/notes.txt", "b/2.mp4"]
    assert storage.list_files(root, suffixes=(".mp4",)) == [
        StoredFile(f"{root}/a/1.MP4", 7),
        StoredFile(f"{root}/b/2.mp4", 7),
    ]
    with pytest.raises(NotFoundError, match=r"nothing at .*/none"):
        storage.list_files(storage.join(root, "none"))


def test_existence_and_deletion(root: str) -> None:
    uri = storage.join(root, "run/deep/x")
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"1")
    storage.write_bytes(storage.join(root, "run2/x"), b"2")
    assert storage.exists(uri)
    assert storage.exists(storage.join(root, "run"))
    storage.delete_folder(storage.join(root, "run"))
    storage.delete_folder(storage.join(root, "run"))
    assert not storage.exists(uri)
    assert storage.read_bytes(storage.join(root, "run2/x")) == b"2"


def test_deleting_what_is_gone_is_no_error(root: str) -> None:
    uri = storage.join(root, "run/x")
    storage.delete_file(uri)
    storage.write_bytes(uri, b"1")
    storage.delete_file(uri)
    storage.delete_file(uri)
    assert not storage.exists(uri)


@pytest.mark.parametrize("size", [10, 3 * 5 * 1024**2 + 1])
def test_of_several_that_create_a_file_one_succeeds(root: str, size: int) -> None:
    uri, made = storage.join(root, "a/b.json"), dict[bytes, bool]()
    contents = [bytes([number]) * size for number in range(4)]

    def go(data: bytes) -> None:
        made[data] = storage.create(uri, data)

    threads = [threading.Thread(target=go, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [data for data in contents if made[data]]
    assert storage.read_bytes(uri) == winner
    assert [file.uri for file in storage.list_files(root)] == [uri]
    assert not storage.create(uri, winner)
    large = bytes(storage.CREATE_BYTES + 1)
    if storage.can_create(uri, large):  # on a disk
        assert storage.create(storage.join(root, "large"), large)
    else:
        with pytest.raises(ValueError, match="at most"):
            storage.create(uri, large)


@pytest.mark.cluster
@pytest.mark.parametrize("fault", FAULTS)
def test_creating_on_a_store_that_fails(
    s3: S3Server, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the object was made, but the answer was lost: it is then this one's."""
    point_to(s3, monkeypatch)
    with faulty_proxy(s3, fault, lambda number: number % 3 == 0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        for number in range(6):
            uri = f"s3://{s3.bucket}/{tmp_path.name}/{number}"
            assert storage.create(uri, b"%d" % number)
            assert not storage.create(uri, b"another")
            assert storage.read_bytes(uri) == b"%d" % number
        assert proxy.faults >= 3


@pytest.mark.cluster
@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_is_not_seen(s3: S3Server, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    point_to(s3, monkeypatch)
    uri, data = f"s3://{s3.bucket}/faults", os.urandom(200_000)
    storage.write_bytes(uri, data)
    with faulty_proxy(s3, fault, lambda number: number < 2) as proxy:
        point_to(s3, monkeypatch, AWS_ENDPOINT_URL=proxy.url)
        assert storage.read_bytes(uri) == data
        assert proxy.faults == (1 if fault == "slow" else 2)  # what is slow is not asked for again


def test_preflights_leave_nothing(root: str) -> None:
    with pytest.raises(NotFoundError, match=r"nothing at .*/data.*check the spelling"):
        storage.check_readable(storage.join(root, "data"))
    storage.check_writable(storage.join(root, "data"))
    assert not [file for file in storage.list_files(storage.parent(root)) if root in file.uri]
    storage.write_bytes(storage.join(root, "data/x"), b"1")
    storage.check_readable(storage.join(root, "data"))


def test_a_missing_file(root: str) -> None:
    with pytest.raises(NotFoundError, match=r"none\.mp4"):
        storage.read_bytes(storage.join(root, "none.mp4"))


def test_whole_stores_are_not_deleted() -> None:
    for whole in ("/", "s3://bucket"):
        with pytest.raises(ConfigError):
            storage.delete_folder(whole)
