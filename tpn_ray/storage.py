"""Object storage and local disk behind one URI form. Runs anywhere; the only module that knows S3.

A URI is "s3://bucket/key", "file:///absolute/path" or a plain local path; relative paths become absolute at once.
Endpoint, region and credentials come from the usual AWS variables and profiles: AWS_ENDPOINT_URL_S3 or
AWS_ENDPOINT_URL (for S3-compatible stores), AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE,
AWS_REGION or AWS_DEFAULT_REGION. Data moves through pyarrow. boto3 does two things that pyarrow cannot: it writes an
object only if nothing is there (`create`), and says after a failure what was wrong, since pyarrow's HEAD requests carry
no error code ("No response body").

A store that does not answer, or answers that it cannot just now, is asked again until `patience_seconds` are over. What
will not pass (no such key, no permission) is never asked again. What is written to a disk is durable when the call
returns: the file and its folder are synced.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import math
import os
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs as pafs

from tpn_ray.errors import ConfigError, NotFoundError, StorageError, StorageRefusedError
from tpn_ray.redaction import redacted, refuse_credentials

CONNECT_SECONDS = 3.0
REQUEST_SECONDS = 5.0  # without a byte
PATIENCE = "TPN_RAY_STORAGE_SECONDS"
"""Variable that hands `--storage-seconds` to every process of a job."""
PATIENCE_SECONDS = 300.0
CHECK_SECONDS = 10.0
"""Patience of what is checked at the start of a job: a store that does not answer then has a wrong address, mostly."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 10.0
TELL_SECONDS = 10.0
"""How long a store is waited for before the user is told."""
DOWNLOAD_PIECE_BYTES = 16 * 1024**2
CREATE_BYTES = 64 * 1024**2
"""Most that `create` writes: one request, since not all stores heed the condition of an upload in pieces."""
CONFLICT_TRIES, CONFLICT_SECONDS = 10, 0.5
"""Answers of a store that another writer is at work on the same object, and the wait after each."""

T = TypeVar("T")


@dataclass(frozen=True)
class StoredFile:
    """One file or object that a listing found."""

    uri: str
    size_bytes: int


# --- URIs


def absolute(uri: str | os.PathLike[str]) -> str:
    """The one spelling of a URI: s3://bucket/key, or an absolute local path. Raises ConfigError for other schemes, and
    for credentials in a URI."""
    text = os.fspath(uri)
    if "://" in text and ("@" in text or "=" in text):
        refuse_credentials("the URI", text)
    if text.startswith("s3://"):
        bucket, _, key = text[len("s3://") :].partition("/")
        if not bucket:
            raise ConfigError(f"no bucket in {text!r}; write s3://bucket/path")
        return f"s3://{bucket}/{key.strip('/')}".rstrip("/")
    if text.startswith("file:"):
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise ConfigError(f"{text!r} is not a local file; write file:///absolute/path")
        return os.path.normpath(unquote(parts.path))
    if re.match(r"^[A-Za-z][A-Za-z0-9+.-]*://", text):
        scheme = text.partition(":")[0]
        raise ConfigError(f"storage of the kind {scheme}:// is not supported: {text!r}; use s3:// or a local path")
    if not text:
        raise ConfigError("an empty path was given; write s3://bucket/path or a local path")
    return str(Path(text).expanduser().absolute())


def is_absolute(uri: str) -> bool:
    """Whether `uri` says by itself where it is, without a folder it is relative to."""
    return "://" in uri or uri.startswith(("file:", "/", "~"))


def join(uri: str, *parts: str) -> str:
    """`uri` with path parts appended."""
    return "/".join([absolute(uri).rstrip("/"), *(part.strip("/") for part in parts)])


def name(uri: str) -> str:
    """The last part of the path: the file's own name."""
    return absolute(uri).rpartition("/")[2]


def parent(uri: str) -> str:
    """The folder that holds it. Raises ConfigError for a bucket, which nothing holds."""
    head = absolute(uri).rpartition("/")[0]
    if head in ("s3:/", "s3:"):
        raise ConfigError(f"{uri!r} is a bucket: it has no folder above it")
    return head or "/"


def is_s3(uri: str) -> bool:
    """Whether the URI names an object store rather than this machine's disk."""
    return uri.startswith("s3://")


# --- filesystems


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem for a URI (one per process and setting) and the path in it. It repeats nothing: what this
    module does with it is repeated as `decide_retry` says."""
    uri = absolute(uri)
    if not is_s3(uri):
        return pafs.LocalFileSystem(), uri
    path = uri[len("s3://") :]
    bucket = path.partition("/")[0]
    # The variables are part of the key: a test or a notebook that changes them gets a new client.
    return _s3(endpoint(), _region(bucket), _credentials()), path


def patient_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """A filesystem for others, such as Ray Tune, and the path in it. An object store is waited for as everywhere here,
    also where the filesystem was pickled: pyarrow's own forgets then how often it is to repeat a request."""
    uri = absolute(uri)
    if not is_s3(uri):
        return pafs.LocalFileSystem(), uri
    return pafs.PyFileSystem(_Patient()), uri[len("s3://") :]


_CREDENTIAL_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")


def _credentials() -> tuple[str | None, ...]:
    return tuple(os.environ.get(key) for key in _CREDENTIAL_VARIABLES)


def endpoint() -> str | None:
    """The S3-compatible store that the environment names; None means Amazon S3."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    if url and urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"AWS_ENDPOINT_URL is {redacted(url)!r}; it must begin with http:// or https://")
    return url


def _region(bucket: str) -> str | None:
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region:
        return region
    # Compatible stores ignore the region, but without one the SDK asks the EC2 metadata service and waits.
    if endpoint():
        return "us-east-1"
    try:
        return _region_of_aws_bucket(bucket)
    except (OSError, pa.ArrowException):  # not kept: Amazon may only be away for the moment
        return None


@lru_cache(maxsize=256)
def _region_of_aws_bucket(bucket: str) -> str:
    region: str = pafs.resolve_s3_region(bucket)
    return region


@lru_cache(maxsize=16)
def _s3(endpoint_url: str | None, region: str | None, _credentials: tuple[str | None, ...]) -> pafs.FileSystem:
    return pafs.S3FileSystem(
        region=region,
        endpoint_override=urlsplit(endpoint_url).netloc if endpoint_url else None,
        scheme=urlsplit(endpoint_url).scheme if endpoint_url else "https",
        connect_timeout=CONNECT_SECONDS,
        request_timeout=REQUEST_SECONDS,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=1),
        allow_delayed_open=True,  # a small object is then one PUT instead of a multipart upload
    )


# --- operations


def read_bytes(uri: str, *, max_bytes: int | None = None) -> bytes:
    """All bytes of one file. Raises NotFoundError, or StorageError (also when it holds more than `max_bytes`)."""

    def read(fs: pafs.FileSystem, path: str) -> bytes:
        with fs.open_input_file(path) as file:
            size = file.size()
            if max_bytes is not None and size > max_bytes:
                raise StorageError(f"{absolute(uri)} holds {size} bytes, more than the limit of {max_bytes}")
            data: bytes = file.read(size)
        if len(data) != size:
            raise PassingError(f"truncated body: {len(data)} of {size} bytes came")
        return data

    return _attempt(uri, "read", read)


def read_range(uri: str, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` of a file that does not change. Raises as `read_bytes` does.

    Opening an object asks for its size: that is done once per process, then a range costs one request.
    """
    uri = absolute(uri)

    def read(fs: pafs.FileSystem, path: str) -> bytes:
        if is_s3(uri):
            data: bytes = _opened(uri, endpoint(), _credentials()).read_at(size, offset)
        else:
            with fs.open_input_file(path) as file:
                data = file.read_at(size, offset)
        if len(data) != size:
            raise PassingError(f"truncated body: {len(data)} of {size} bytes came from {offset}")
        return data

    return _attempt(uri, "read", read)


@lru_cache(maxsize=256)
def _opened(uri: str, _endpoint: str | None, _credentials: tuple[str | None, ...]) -> pa.NativeFile:
    fs, path = filesystem(uri)
    return fs.open_input_file(path)


def download(uri: str, target: Path, *, max_bytes: int) -> None:
    """Copy one file to the local path `target`, piece by piece. Raises as `read_bytes` does."""

    def copy(fs: pafs.FileSystem, path: str) -> None:
        with fs.open_input_file(path) as file, target.open("wb") as copied:
            size = file.size()
            if size > max_bytes:
                raise StorageError(f"{absolute(uri)} holds {size} bytes, more than the limit of {max_bytes}")
            while piece := file.read(DOWNLOAD_PIECE_BYTES):
                copied.write(piece)
            if copied.tell() != size:
                raise PassingError(f"truncated body: {copied.tell()} of {size} bytes came")
            copied.flush()
            os.fsync(copied.fileno())
        _sync_folder(target.parent)

    _attempt(uri, "read", copy)


def write_bytes(uri: str, data: bytes) -> None:
    """Write one file whole: nobody can see a half of it. Missing local folders are made."""

    def write(fs: pafs.FileSystem, path: str) -> None:
        if is_s3(absolute(uri)):
            with fs.open_output_stream(path) as stream:
                stream.write(data)
            return
        with _beside(Path(path), data) as temporary:
            temporary.replace(path)
        _sync_folder(Path(path).parent)

    _attempt(uri, "write", write)


def create(uri: str, data: bytes) -> bool:
    """Write one file whole if nothing is there; False, and nothing is changed, if something is.

    Of several that try at the same moment one succeeds. Raises StorageError, and ValueError for what is not
    `can_create`.
    """
    if not can_create(uri, data):
        raise ValueError(f"{len(data)} bytes for {uri}: at most {CREATE_BYTES} are created on condition")
    tries = 0

    def write(fs: pafs.FileSystem, path: str) -> bool:
        nonlocal tries
        tries += 1
        if not is_s3(absolute(uri)):
            return _create_local(Path(path), data)
        # A request whose answer was lost may have succeeded: then the object is this one.
        return _create_s3(path, data) or (tries > 1 and _holds(fs, path, data))

    return _attempt(uri, "write", write)


def can_create(uri: str, data: bytes) -> bool:
    """Whether it is small enough to be written on condition, in one request; on a disk everything is."""
    return not is_s3(absolute(uri)) or len(data) <= CREATE_BYTES


def _create_local(target: Path, data: bytes) -> bool:
    with _beside(target, data) as temporary:
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            # A file system without hard links: another one may see this file before it is whole.
            try:
                with target.open("xb") as file:
                    _write_through(file, data)
            except FileExistsError:
                return False
    _sync_folder(target.parent)
    return True


@contextlib.contextmanager
def _beside(target: Path, data: bytes) -> Iterator[Path]:
    """A durable file under another name in the folder of `target`, removed at the end if it is still there."""
    _make_folder(target.parent)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            _write_through(file, data)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _write_through(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _make_folder(folder: Path) -> None:
    """Make a folder, and those above it, durably."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in reversed(missing):
        _sync_folder(one.parent)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Some network file systems cannot, and need not: they keep no names back."""
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # a folder that may be written and not read
        return
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS):
            raise
    finally:
        os.close(opened)


def _create_s3(path: str, data: bytes) -> bool:
    """Put an object on condition that there is none. Failures become OSErrors, worded as pyarrow words them."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

    bucket, _, key = path.partition("/")
    client = _client_for_writing(bucket, endpoint(), _credentials())
    for last in (False,) * (CONFLICT_TRIES - 1) + (True,):
        try:
            client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        except ClientError as error:
            code, status = error.response["Error"].get("Code"), error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status == HTTPStatus.PRECONDITION_FAILED:
                return False
            if status != HTTPStatus.CONFLICT or last:
                raise OSError(f"AWS Error {code} (HTTP status {status}) during PutObject operation: {error}") from error
            time.sleep(CONFLICT_SECONDS)
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise OSError(str(error)) from error
        except BotoCoreError as error:  # no answer, or none that is whole
            raise PassingError(str(error)) from error
        else:
            return True
    raise AssertionError("unreachable")


def _holds(fs: pafs.FileSystem, path: str, data: bytes) -> bool:
    with fs.open_input_file(path) as file:
        return bool(file.size() == len(data) and file.read() == data)


@lru_cache(maxsize=16)
def _client_for_writing(bucket: str, _endpoint: str | None, _credentials: tuple[str | None, ...]) -> Any:
    return _boto3_client(bucket)


def exists(uri: str) -> bool:
    """Whether a file or a folder (on S3: any object below it) is there."""

    def look(fs: pafs.FileSystem, path: str) -> bool:
        return bool(fs.get_file_info(path).type != pafs.FileType.NotFound)

    return _attempt(uri, "look for", look)


def list_files(uri: str, *, suffixes: tuple[str, ...] = ()) -> list[StoredFile]:
    """Every file below a folder, sorted by URI; with `suffixes` (any case) only those. Raises NotFoundError."""
    root = absolute(uri)
    lowered = tuple(suffix.lower() for suffix in suffixes)

    def walk(fs: pafs.FileSystem, path: str) -> list[StoredFile]:
        prefix = "s3://" if is_s3(root) else ""
        # On a disk, folders below it that are deleted meanwhile are no error; that it is not there itself is one.
        infos = fs.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=not prefix))
        if not infos and not prefix and not Path(path).exists():
            raise FileNotFoundError(errno.ENOENT, "no such folder", path)
        return [
            StoredFile(prefix + info.path, info.size)
            for info in infos
            if info.type == pafs.FileType.File and (not lowered or info.path.lower().endswith(lowered))
        ]

    return sorted(_attempt(root, "list", walk), key=lambda file: file.uri)


def delete_folder(uri: str) -> None:
    """Delete a folder and all that is below it; nothing there is no error. Refuses a whole bucket and '/'."""
    root = absolute(uri)
    parent(root)
    if root == "/":
        raise ConfigError("refusing to delete '/'")

    def delete(fs: pafs.FileSystem, path: str) -> None:
        # Another one may delete at the same time, and a request whose answer was lost has deleted already.
        with contextlib.suppress(FileNotFoundError):
            if fs.get_file_info(path).type != pafs.FileType.NotFound:
                fs.delete_dir(path)

    _attempt(root, "delete", delete)


def delete_file(uri: str) -> None:
    """Delete one file; nothing there is no error."""

    def delete(fs: pafs.FileSystem, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            fs.delete_file(path)

    _attempt(uri, "delete", delete)


def check_readable(uri: str) -> None:
    """Preflight: raise one clear error within seconds if `uri` (a file or a folder) cannot be read."""

    def look(fs: pafs.FileSystem, path: str) -> bool:
        return bool(fs.get_file_info(path).type != pafs.FileType.NotFound)

    with patience(CHECK_SECONDS):
        found = _attempt(uri, "read", look)
    if not found:
        raise NotFoundError(_nothing_there(absolute(uri)))


def check_writable(uri: str) -> None:
    """Preflight: raise one clear error within seconds if nothing can be written below the folder `uri`. Leaves nothing
    behind."""
    probe = join(uri, f".write-check-{uuid.uuid4().hex}")
    with patience(CHECK_SECONDS):
        write_bytes(probe, b"tpn_ray")
        delete_file(probe)


# --- patience

_shorter: ContextVar[float | None] = ContextVar("shorter", default=None)
"""Patience of a `with patience(...)` block, in its thread."""


def patience_seconds() -> float:
    """The longest time that an operation waits for a store that does not answer or refuses for the moment."""
    process = float(os.environ.get(PATIENCE, PATIENCE_SECONDS))
    here = _shorter.get()
    return process if here is None else min(process, here)


def set_patience(seconds: float) -> None:
    """Set the patience of this process and of those that it starts. Raises ConfigError for a negative one."""
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"storage_seconds={seconds:g} must be 0 (never wait) or more")
    os.environ[PATIENCE] = f"{seconds:g}"


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Wait no longer than `seconds` for what this thread asks a store inside the block."""
    token = _shorter.set(seconds)
    try:
        yield
    finally:
        _shorter.reset(token)


class _Outage:
    """What this process told of a store that is away: that it is waited for, once, and that it is back."""

    def __init__(self) -> None:
        self.tell: Callable[[str], None] = logging.getLogger("tpn_ray").warning
        self._lock = threading.Lock()
        self._told, self._over = "", -math.inf

    def waited(self, seconds: float, patience: float) -> None:
        """An operation failed again after so many seconds, and goes on waiting."""
        store = _store()
        with self._lock:
            seconds = min(seconds, time.monotonic() - self._over)  # those that are slow to notice the end are no news
            if seconds < TELL_SECONDS or self._told == store:
                return
            self._told = store
        self.tell(
            f"storage at {store} does not answer, or refuses; it is waited for, {patience:g} s at most "
            "(--storage-seconds)"
        )

    def over(self) -> None:
        """An operation came to its end."""
        if not self._told:  # nearly always: no lock
            return
        with self._lock:
            store, self._told, self._over = self._told, "", time.monotonic()
        if store:
            self.tell(f"storage at {store} answers again")


_outage = _Outage()


def tell_outages(tell: Callable[[str], None]) -> None:
    """Have this process tell of a store that is away by `tell`, from any thread. By default it is logged."""
    _outage.tell = tell


# --- retry


@dataclass(frozen=True)
class Retry:
    """Wait, then try again."""

    wait_seconds: float


@dataclass(frozen=True)
class GiveUp:
    """The failure stands."""


class PassingError(OSError):
    """A failure of a request that this module found itself, and that may pass."""


LASTING, UNREACHABLE, REFUSING = "lasting", "unreachable", "refusing"

_SAID = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))? during \w+ operation")
"""How pyarrow words every failure of a request: the SDK's code, and where it knows none, the status of the answer."""
_PASSING = ("SLOW_DOWN", "THROTTLING", "SERVICE_UNAVAILABLE", "INTERNAL_FAILURE", "REQUEST_TIMEOUT", "REQUEST_EXPIRED")


def failure_kind(error: Exception) -> str:
    """What a request to an object store met: UNREACHABLE, no answer came, or not in time, or not whole; REFUSING, the
    store says that it cannot now; LASTING, anything else."""
    if isinstance(error, PassingError):
        return UNREACHABLE
    said = _SAID.search(str(error))
    if said is None:
        return LASTING
    code, status = said[1], int(said[2] or 0)
    if code == "NETWORK_CONNECTION":  # whatever curl met: refused, unknown host, time-out, reset, a part of an answer
        return UNREACHABLE
    passing = code in _PASSING or status >= 500 or status in (200, 408, 429)  # 200: with a body that is none
    return REFUSING if passing else LASTING


def decide_retry(
    kind: str, attempt: int, spent_seconds: float, patience_seconds: float, jitter: float
) -> Retry | GiveUp:
    """What to do after failure number `attempt` (from 1), `spent_seconds` after the operation began: nothing for what
    lasts; else wait a share, `jitter` in [0, 1), of 0.5, 1, 2, 4, 8, 10, 10 ... seconds, until the patience is over.

    Jitter over the whole span keeps thousands of tasks from coming back at the same moment. The last attempt is made
    just when the patience ends.
    """
    if kind == LASTING or spent_seconds >= patience_seconds:
        return GiveUp()
    span = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** min(attempt - 1, 16))
    return Retry(min(jitter * span, patience_seconds - spent_seconds))


def _attempt(uri: str, verb: str, act: Callable[[pafs.FileSystem, str], T]) -> T:
    """Run one storage operation, repeat it as `decide_retry` says, and turn the failure that stands into a
    StorageError."""
    uri = absolute(uri)
    begin, attempt, patient = time.monotonic(), 0, patience_seconds()
    while True:
        attempt += 1
        try:
            done = act(*filesystem(uri))
        except (OSError, pa.ArrowException) as error:
            kind = failure_kind(error) if is_s3(uri) else LASTING
            spent = time.monotonic() - begin
            decision = decide_retry(kind, attempt, spent, patient, random.random())
            if isinstance(decision, GiveUp):
                raise explain(uri, verb, error, kind, attempt, spent) from error
            _outage.waited(spent, patient)
            time.sleep(decision.wait_seconds)
        else:
            if is_s3(uri):
                _outage.over()
            return done


class _Patient(pafs.FileSystemHandler):  # type: ignore[misc]  # pyarrow's classes are untyped here
    """An object store for pyarrow, by this module's operations; paths are without "s3://". Files are small, and read
    and written whole."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Patient)

    __hash__ = None  # type: ignore[assignment]

    def _do(self, path: str, verb: str, act: Callable[[pafs.FileSystem, str], T]) -> T:
        try:
            return _attempt(f"s3://{path}", verb, act)
        except NotFoundError as error:
            raise FileNotFoundError(str(error)) from error
        except StorageError as error:
            raise OSError(str(error)) from error

    def get_type_name(self) -> str:
        return "s3"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return [self._do(path, "look for", lambda fs, there: fs.get_file_info(there)) for path in paths]

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        return self._do(selector.base_dir, "list", lambda fs, there: fs.get_file_info(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        self._do(path, "write", lambda fs, there: fs.create_dir(there, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        self._do(path, "delete", lambda fs, there: fs.delete_dir(there))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self._do(path, "delete", lambda fs, there: fs.delete_dir_contents(there, missing_dir_ok=missing_dir_ok))

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("a whole object store is not deleted")

    def delete_file(self, path: str) -> None:
        self._do(path, "delete", lambda fs, there: fs.delete_file(there))

    def move(self, src: str, dest: str) -> None:
        self._do(src, "write", lambda fs, there: fs.move(there, dest))

    def copy_file(self, src: str, dest: str) -> None:
        self._do(src, "write", lambda fs, there: fs.copy_file(there, dest))

    def open_input_file(self, path: str) -> pa.NativeFile:
        def read(fs: pafs.FileSystem, there: str) -> bytes:
            with fs.open_input_file(there) as file:
                data: bytes = file.read()
            return data

        return pa.BufferReader(self._do(path, "read", read))

    open_input_stream = open_input_file

    def open_output_stream(self, path: str, metadata: object) -> pa.NativeFile:
        return pa.PythonFile(_Upload(lambda data: self._do(path, "write", _written(data))), mode="w")

    def open_append_stream(self, path: str, metadata: object) -> pa.NativeFile:
        raise NotImplementedError("objects cannot be appended to")


class _Upload(io.BytesIO):
    """Keeps what is written until it is closed."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        super().__init__()
        self._write = write

    def close(self) -> None:
        if not self.closed:
            data = self.getvalue()
            super().close()
            self._write(data)


def _written(data: bytes) -> Callable[[pafs.FileSystem, str], None]:
    def write(fs: pafs.FileSystem, path: str) -> None:
        with fs.open_output_stream(path) as stream:
            stream.write(data)

    return write


def _store() -> str:
    """The store's name for messages."""
    return redacted(endpoint() or "Amazon S3")


# --- diagnosis


REFUSALS = ("AccessDenied", "403", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoCredentials")
"""S3's codes for what only a person can change."""


def explain(uri: str, verb: str, error: Exception, kind: str, attempts: int = 1, seconds: float = 0.0) -> StorageError:
    """The clear error for a failed operation: what, where, what the store said, and what to do."""
    if not is_s3(uri):
        return _explain_local(uri, verb, error)
    code: str | None
    if kind == UNREACHABLE:
        code, said = "Unreachable", _curl_reason(str(error))
    else:
        code, said = _ask_s3(uri, verb)
    if isinstance(error, FileNotFoundError) and (code is None or code in _PASSING_ANSWERS):
        return NotFoundError(_nothing_there(uri))  # the bucket is there, or nobody can say just now that it is not
    if code is None:  # the store answers the question, so the failure is of this object alone
        code, said = "error", _first_line(str(error))
    bucket = uri[len("s3://") :].partition("/")[0]
    error_type = NotFoundError if code in ("NoSuchBucket", "NoSuchKey", "404") else StorageError
    if code in REFUSALS:
        error_type = StorageRefusedError
    tries = f" (tried {attempts} times in {seconds:.0f} s)" if attempts > 1 else ""
    return error_type(f"cannot {verb} {uri} at {_store()}{tries}: {_remedy(code, said, bucket)}")


_PASSING_ANSWERS = ("Unreachable", "SlowDown", "InternalError", "ServiceUnavailable", "500", "502", "503", "504")


def _nothing_there(uri: str) -> str:
    place = f" at {_store()}" if is_s3(uri) else ""
    return f"nothing at {uri}{place}; check the spelling"


def _explain_local(uri: str, verb: str, error: Exception) -> StorageError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFoundError(_nothing_there(uri))
    if isinstance(error, PermissionError):
        return StorageRefusedError(f"cannot {verb} {uri}: no permission; check the owner and the mode of the folder")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return StorageRefusedError(f"cannot {verb} {uri}: the disk is full; free some space or choose another folder")
    return StorageError(f"cannot {verb} {uri}: {_first_line(str(error))}")


def _remedy(code: str, said: str, bucket: str) -> str:
    """One sentence for an S3 error code. Never holds a secret: only codes, names of variables and the bucket."""
    if code == "NoSuchBucket":
        return f"NoSuchBucket: there is no bucket {bucket!r}; create it, or check the name and AWS_ENDPOINT_URL"
    if code == "InvalidAccessKeyId":
        return "InvalidAccessKeyId: the store does not know the key; check AWS_ACCESS_KEY_ID (or AWS_PROFILE)"
    if code == "SignatureDoesNotMatch":
        return "SignatureDoesNotMatch: the secret does not fit the key; check AWS_SECRET_ACCESS_KEY"
    if code in ("ExpiredToken", "InvalidToken"):
        return f"{code}: the session has ended; renew AWS_SESSION_TOKEN and the two keys with it"
    if code == "RequestTimeTooSkewed":
        return "RequestTimeTooSkewed: this machine's clock and the store's differ; set it by NTP"
    if code in ("AccessDenied", "403", "AllAccessDisabled"):
        return f"AccessDenied: these credentials may not do this in bucket {bucket!r}; check the policy and AWS_PROFILE"
    if code == "NoCredentials":
        return "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if code == "Unreachable":
        return f"no answer ({said}); check AWS_ENDPOINT_URL and that the store is running"
    if code in ("301", "PermanentRedirect", "AuthorizationHeaderMalformed"):
        return f"{code}: the bucket is in another region; set AWS_REGION to it"
    return f"{code}: {said}" if code != "error" else said


def _ask_s3(uri: str, verb: str) -> tuple[str | None, str]:
    """Ask the store once more with boto3, which reports its error code; (None, "") if it now answers well."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        ConnectionError,
        HTTPClientError,
        NoCredentialsError,
        PartialCredentialsError,
    )

    bucket, _, key = uri[len("s3://") :].partition("/")
    try:
        client = _boto3_client(bucket)
        if verb == "read":
            client.get_object(Bucket=bucket, Key=key, Range="bytes=0-0")
        elif verb == "write":
            client.put_object(Bucket=bucket, Key=f"{key}.write-check", Body=b"")
            client.delete_object(Bucket=bucket, Key=f"{key}.write-check")
        else:
            client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
    except ClientError as error:
        details = error.response.get("Error", {})
        return str(details.get("Code", "error")), _first_line(str(details.get("Message", "")))
    except (NoCredentialsError, PartialCredentialsError):
        return "NoCredentials", ""
    except (ConnectionError, HTTPClientError) as error:
        return "Unreachable", type(error).__name__
    except BotoCoreError as error:
        return "error", _first_line(str(error))
    return None, ""


def clock_skew_seconds(uri: str) -> float | None:
    """How far this machine's clock is ahead of the store's, by the Date of an answer; None where it names none.

    Raises StorageError where the store does not answer; one that refuses has answered.
    """
    if not is_s3(uri):
        return None
    from botocore.exceptions import BotoCoreError, ClientError

    bucket = absolute(uri)[len("s3://") :].partition("/")[0]
    before = time.time()
    try:
        response = _boto3_client(bucket).head_bucket(Bucket=bucket)
    except ClientError as error:
        response = error.response
    except BotoCoreError as error:
        said = _remedy("Unreachable", type(error).__name__, bucket)
        raise StorageError(f"cannot ask {_store()} for its time: {said}") from error
    date = response["ResponseMetadata"]["HTTPHeaders"].get("date")
    return (before + time.time()) / 2 - parsedate_to_datetime(date).timestamp() if date else None


def _boto3_client(bucket: str) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=REQUEST_SECONDS,
        retries={"total_max_attempts": 1},
        s3={"addressing_style": "path" if endpoint() else "auto"},
    )
    # A session of its own: boto3's default session keeps the credentials that it saw first.
    return boto3.Session().client("s3", endpoint_url=endpoint(), region_name=_region(bucket), config=config)


def _curl_reason(message: str) -> str:
    """What the HTTP library said, out of pyarrow's long message: "curlCode: 7, Couldn't connect to server; Details"."""
    found = re.search(r"curlCode: \d+, ([^;\n]+)", message)
    return found[1] if found else _first_line(message)


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:300] if text.strip() else "no reason given"
