"""Storage: URIs, local disk, a real S3 server, and what every failure says."""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from pyarrow.fs import FileSelector, FileType, copy_files

from tests.faulty_proxy import FAULTS, OUTAGES, FaultyProxy, faulty_proxy
from tests.servers import S3Server, free_port, s3_server
from tpn_ray import storage
from tpn_ray.errors import ConfigError, NotFoundError, StorageError
from tpn_ray.storage import LASTING, REFUSING, UNREACHABLE, GiveUp, Retry, StoredFile


@pytest.fixture(autouse=True)
def no_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the machine's own account reaches a test."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.delenv(storage.PATIENCE, raising=False)


# --- URIs


def test_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("runs/a") == str(tmp_path / "runs/a")
    assert storage.absolute(tmp_path / "x") == str(tmp_path / "x")
    assert storage.absolute("file:///data/my%20videos/") == "/data/my videos"
    assert storage.absolute("s3://bucket/a/b/") == "s3://bucket/a/b"
    assert storage.absolute("s3://bucket/") == storage.absolute("s3://bucket") == "s3://bucket"
    assert storage.absolute(storage.absolute("s3://bucket/ä b")) == "s3://bucket/ä b"
    for wrong, message in (("", "empty path"), ("gs://b/k", "gs:// is not supported"), ("s3:///k", "no bucket")):
        with pytest.raises(ConfigError, match=message):
            storage.absolute(wrong)
    with pytest.raises(ConfigError, match="write file:///absolute/path"):
        storage.absolute("file://host/x")
    for secret in (
        "s3://AKIA:pass/word@bucket/k",
        "s3://b/k?secret_key=password",
        "https://b/k?X-Amz-Signature=password",
    ):
        with pytest.raises(ConfigError, match="holds credentials; leave them out") as caught:
            storage.absolute(secret)
        assert "word" not in str(caught.value)


def test_join_name_parent() -> None:
    assert storage.join("s3://bucket", "a", "/b/", "c.mp4") == "s3://bucket/a/b/c.mp4"
    assert storage.join("/data/", "a") == "/data/a"
    assert storage.name("s3://bucket/a/b.mp4") == "b.mp4"
    assert storage.parent("s3://bucket/a/b.mp4") == "s3://bucket/a"
    assert storage.parent("s3://bucket/a") == "s3://bucket"
    assert storage.parent("/a") == "/"
    with pytest.raises(ConfigError, match="is a bucket"):
        storage.parent("s3://bucket")


# --- the same behaviour on local disk and on S3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.cluster)])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place to write to."""
    if request.param == "local":
        return str(tmp_path)
    running: S3Server = request.getfixturevalue("server")
    point_to(running, monkeypatch)
    return f"s3://{running.bucket}/{tmp_path.name}"


def point_to(server: S3Server, monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    for name, value in {**server.environment, **changes}.items():
        monkeypatch.setenv(name, value)


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
    server: S3Server, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the object was made, but the answer was lost: it is then this one's."""
    point_to(server, monkeypatch)
    with faulty_proxy(server, fault, lambda number: number % 3 == 0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        for number in range(6):
            uri = f"s3://{server.bucket}/{tmp_path.name}/{number}"
            assert storage.create(uri, b"%d" % number)
            assert not storage.create(uri, b"another")
            assert storage.read_bytes(uri) == b"%d" % number
        assert proxy.faults >= 3


def test_what_is_written_to_a_disk_is_synced_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, fsync = list[str](), os.fsync

    def noted(opened: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{opened}").readlink()))
        fsync(opened)

    monkeypatch.setattr(os, "fsync", noted)
    for write in (storage.write_bytes, storage.create):
        folder = tmp_path / write.__name__ / "run"
        write(str(folder / "file"), b"x")
        parents, file, name = synced[:-2], synced[-2], synced[-1]
        assert parents == [str(tmp_path), str(folder.parent)]  # which hold the names of the new folders
        assert Path(file).name.startswith(".file.")
        assert name == str(folder)
        synced.clear()
    storage.download(str(folder / "file"), tmp_path / "copy", max_bytes=10)
    assert synced == [str(tmp_path / "copy"), str(tmp_path)]


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


# --- local failures


def test_a_local_write_is_whole_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x"
    storage.write_bytes(str(target), b"before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageError, match="the disk is full"):
        storage.write_bytes(str(target), b"after")
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot write|nothing at"):
        storage.write_bytes(str(tmp_path / "x/y"), b"1")
    with pytest.raises(StorageError):
        storage.list_files(str(tmp_path / "x"))


# --- S3 failures, each one clear sentence


def said(error: pytest.ExceptionInfo[StorageError]) -> str:
    text = str(error.value)
    assert "secret" not in text.lower().replace("aws_secret_access_key", "").replace("the secret does", "")
    assert "\n" not in text
    return text


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
    server: S3Server, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], message: str
) -> None:
    point_to(server, monkeypatch, **changes)
    uri = f"s3://{server.bucket}/x"
    for act in (storage.read_bytes, storage.list_files, storage.check_readable, storage.check_writable):
        with pytest.raises(StorageError, match=message) as error:
            act(uri)
        assert uri in said(error)
        assert server.endpoint_url in said(error)


@pytest.mark.cluster
def test_a_missing_bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to(server, monkeypatch)
    for act in (storage.read_bytes, storage.list_files, storage.check_readable):
        with pytest.raises(
            NotFoundError, match=r"NoSuchBucket: there is no bucket 'no-such-bucket'|nothing at s3://no-such"
        ) as error:
            act("s3://no-such-bucket/x")
        assert server.endpoint_url in said(error)


@pytest.mark.timeout(40)
@pytest.mark.parametrize("kind", ["refused", "unknown host", "silent"])
def test_a_wrong_endpoint_fails_soon_at_the_start(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Although the process would wait for minutes."""
    monkeypatch.setattr(storage, "CHECK_SECONDS", 1.0)
    monkeypatch.setattr(storage, "REQUEST_SECONDS", 1.0)
    monkeypatch.setattr(storage, "CONNECT_SECONDS", 1.0)
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


# --- transient failures


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("NETWORK_CONNECTION during GetObject operation: curlCode: 7, Could not connect to server", UNREACHABLE),
        ("NETWORK_CONNECTION during HeadObject operation: curlCode: 6, Could not resolve hostname", UNREACHABLE),
        ("NETWORK_CONNECTION during PutObject operation: curlCode: 28, Timeout was reached", UNREACHABLE),
        ("SLOW_DOWN during GetObject operation: Please reduce your request rate.", REFUSING),
        ("INTERNAL_FAILURE during PutObject operation: We encountered an internal error.", REFUSING),
        ("UNKNOWN (HTTP status 503) during HeadObject operation: No response body.", REFUSING),
        ("UNKNOWN (HTTP status 429) during HeadObject operation: No response body.", REFUSING),
        ("UNKNOWN (HTTP status 301) during HeadObject operation: No response body.", LASTING),
        ("UNKNOWN (HTTP status 400) during HeadObject operation: No response body.", LASTING),
        ("ACCESS_DENIED during HeadObject operation: No response body.", LASTING),
        ("NO_SUCH_BUCKET during ListObjectsV2 operation: timeout slowdown curlCode: 7,", LASTING),
    ],
)
def test_what_kind_of_failure_it_is(said: str, kind: str) -> None:
    error = OSError(f"When reading 'a slow_down/x' in bucket 'timeout': AWS Error {said}")
    assert storage.failure_kind(error) == kind


def test_what_pyarrow_says_of_other_things_lasts() -> None:
    assert storage.failure_kind(FileNotFoundError("Path does not exist 'bucket/connection refused'")) == LASTING
    assert storage.failure_kind(storage.PassingError("truncated body: 10 of 20 bytes came")) == UNREACHABLE


def waits(patience: float, jitter: float) -> list[float]:
    """All waits of an operation whose attempts fail at once."""
    waited: list[float] = []
    while isinstance(one := storage.decide_retry(REFUSING, len(waited) + 1, sum(waited), patience, jitter), Retry):
        waited.append(one.wait_seconds)
    return waited


def test_retries_are_bounded_by_time_and_back_off() -> None:
    assert waits(30, jitter=1.0) == [0.5, 1, 2, 4, 8, 10, 4.5]
    assert waits(300, jitter=0.5)[:7] == [0.25, 0.5, 1, 2, 4, 5, 5]
    assert sum(waits(300, jitter=0.5)) == 300  # the last attempt comes when the patience ends
    assert waits(0, jitter=1.0) == []
    assert storage.decide_retry(UNREACHABLE, 2000, 100, 300, 0.5) == Retry(5)
    assert storage.decide_retry(LASTING, 1, 0, 300, 0.5) == GiveUp()


def test_patience_is_set_for_a_process_or_shortened_for_a_block() -> None:
    assert storage.patience_seconds() == storage.PATIENCE_SECONDS
    with storage.patience(5):
        assert storage.patience_seconds() == 5
        storage.set_patience(2)
        assert storage.patience_seconds() == 2
    assert os.environ[storage.PATIENCE] == "2"
    with pytest.raises(ConfigError, match="storage_seconds=-1 must be 0"):
        storage.set_patience(-1)


# --- a store that is away for a while


@pytest.mark.cluster
@pytest.mark.parametrize("outage", OUTAGES)
def test_every_operation_outlives_an_outage(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outage: str
) -> None:
    point_to(server, monkeypatch)
    monkeypatch.setattr(storage, "REQUEST_SECONDS", 1.0)
    monkeypatch.setattr(storage, "LONGEST_WAIT_SECONDS", 1.0)
    monkeypatch.setattr(storage, "TELL_SECONDS", 2.0)
    folder, data, large = f"s3://{server.bucket}/outage-{outage}", os.urandom(200_000), os.urandom(20_000_000)
    for name in ("a/kept", "gone", "removed/x"):
        storage.write_bytes(storage.join(folder, name), data)
    kept, told, failed = storage.join(folder, "a/kept"), list[str](), list[Exception]()
    monkeypatch.setattr(storage, "explain", lambda *about: failed.append(about[2]) or StorageError("not outlived"))
    with faulty_proxy(server) as proxy, ThreadPoolExecutor(10) as pool:
        point_to(server, monkeypatch, AWS_ENDPOINT_URL=proxy.url)
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
    point_to(server, monkeypatch)
    assert (tmp_path / "copy").read_bytes() == data
    assert storage.read_bytes(storage.join(folder, "b/large")) == large
    names = [file.uri.removeprefix(f"{folder}/") for file in storage.list_files(folder)]
    assert names == ["a/kept", "b/large", "b/small"]
    assert told == [
        f"storage at {proxy.url} does not answer, or refuses; it is waited for, 300 s at most (--storage-seconds)",
        f"storage at {proxy.url} answers again",
    ]


@pytest.mark.parametrize("seconds", [0, 1])
def test_a_store_that_stays_away_is_an_error_when_the_patience_ends(
    monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    point_to(S3Server(url, "key", "hidden", "bucket"), monkeypatch)
    storage.set_patience(seconds)
    begin = time.monotonic()
    with pytest.raises(StorageError, match="no answer") as error:
        storage.write_bytes("s3://bucket/x", b"1")
    assert time.monotonic() - begin >= seconds
    assert ("times in 1 s" in said(error)) == (seconds == 1)


def test_an_object_that_is_not_there_stays_so_when_the_store_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it was asked why: a video that is missing is no fault of the store."""
    point_to(S3Server(f"http://127.0.0.1:{free_port()}", "key", "hidden", "bucket"), monkeypatch)
    found = storage.explain("s3://bucket/x", "read", FileNotFoundError("Path does not exist 'bucket/x'"), LASTING)
    assert isinstance(found, NotFoundError)


@pytest.mark.cluster
def test_what_lasts_is_asked_for_once(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with faulty_proxy(server) as proxy:
        point_to(server, monkeypatch, AWS_ENDPOINT_URL=proxy.url)
        with pytest.raises(NotFoundError) as error:
            storage.read_bytes(f"s3://{server.bucket}/none")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(StorageError, match="SignatureDoesNotMatch") as wrong:
            storage.list_files(f"s3://{server.bucket}")
    assert "times in" not in said(error) + said(wrong)


@pytest.mark.parametrize("outage", ["", "refused"])
def test_a_file_system_for_others(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outage: str) -> None:
    """What Ray Tune does with its own, here and where it was pickled, through an outage."""
    if outage and not storage.is_s3(root):
        pytest.skip("a disk does not go away")
    for name in ("result.json", "deep/pointer.json"):
        storage.write_bytes(str(tmp_path / "local" / name), name.encode())
    host, _, port = (storage.endpoint() or "http://127.0.0.1:1").removeprefix("http://").partition(":")
    with FaultyProxy((host, int(port)), "", lambda _: False) as proxy, ThreadPoolExecutor(1) as pool:
        if storage.is_s3(root):
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        pickled = pickle.dumps(storage.patient_filesystem(storage.join(root, "tune")))
        filesystem, path = pickle.loads(pickled)  # noqa: S301 - our own bytes

        def use() -> tuple[bytes, list[str]]:
            filesystem.create_dir(path)
            with filesystem.open_output_stream(f"{path}/mark") as stream:
                stream.write(b"1")
            copy_files(str(tmp_path / "local"), f"{path}/trial", destination_filesystem=filesystem)
            copy_files(f"{path}/trial", str(tmp_path / "back"), source_filesystem=filesystem)
            filesystem.delete_file(f"{path}/trial/result.json")
            with filesystem.open_input_stream(f"{path}/trial/deep/pointer.json") as stream:
                return stream.read(), [
                    info.path.removeprefix(f"{path}/")
                    for info in filesystem.get_file_info(FileSelector(path, recursive=True))
                    if info.is_file
                ]

        if outage:
            proxy.go_away(outage)
        under_way = pool.submit(use)
        if outage:
            time.sleep(1.5)
            assert not under_way.done()
            proxy.come_back()
        pointer, names = under_way.result(timeout=60)
        with pytest.raises(FileNotFoundError):
            filesystem.open_input_file(f"{path}/none")
        assert filesystem.get_file_info(f"{path}/none").type == FileType.NotFound
        filesystem.delete_dir(f"{path}/trial")
        assert [storage.name(file.uri) for file in storage.list_files(storage.join(root, "tune"))] == ["mark"]
    assert (pointer, sorted(names)) == (b"deep/pointer.json", ["mark", "trial/deep/pointer.json"])
    assert (tmp_path / "back" / "result.json").read_bytes() == b"result.json"


@pytest.mark.cluster
@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_is_not_seen(server: S3Server, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    point_to(server, monkeypatch)
    uri, data = f"s3://{server.bucket}/faults", os.urandom(200_000)
    storage.write_bytes(uri, data)
    with faulty_proxy(server, fault, lambda number: number < 2) as proxy:
        point_to(server, monkeypatch, AWS_ENDPOINT_URL=proxy.url)
        assert storage.read_bytes(uri) == data
        assert proxy.faults == (1 if fault == "slow" else 2)  # what is slow is not asked for again


# --- clocks


@pytest.mark.cluster
def test_a_stores_clock_is_read_even_where_it_refuses(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    for secret in (server.secret_key, "wrong"):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        skew = storage.clock_skew_seconds(f"s3://{server.bucket}/x")
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
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        skew = storage.clock_skew_seconds("s3://bucket/x")
    assert skew is not None
    assert -3660 < skew < -3540


def test_a_store_that_is_not_there_has_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(StorageError, match="cannot ask http.* for its time: no answer"):
        storage.clock_skew_seconds("s3://bucket/x")
