"""Reads, writes, lists, and deletes files of an object store or a disk, with retries. Runs anywhere."""

from __future__ import annotations

import contextlib
import errno
import uuid
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs as pafs

from tpn_ray.errors import ConfigError, StorageError
from tpn_ray.storage import disk, s3
from tpn_ray.storage.diagnosis import nothing_there
from tpn_ray.storage.retry import CHECK_SECONDS, attempt, patience
from tpn_ray.storage.uri import S3, absolute, is_s3, join, parent

DOWNLOAD_PIECE_BYTES = 16 * 1024**2
CREATE_BYTES = 64 * 1024**2
"""Largest size for `create`, which makes a single request, since not all stores honor the condition of a multipart
upload."""


@dataclass(frozen=True)
class StoredFile:
    """One file or object found by a listing."""

    uri: str
    size_bytes: int


def read_bytes(uri: str, *, max_bytes: int | None = None) -> bytes:
    """Read one file. Raises NotFoundError, or StorageError, also if it holds more than `max_bytes`."""

    def read(fs: pafs.FileSystem, path: str) -> bytes:
        with fs.open_input_file(path) as file:
            size = _checked_size(uri, file.size(), max_bytes)
            data: bytes = file.read(size)
        _refuse_part(len(data), size)
        return data

    return attempt(uri, "read", read)


def read_range(uri: str, offset: int, size: int) -> bytes:
    """Read `size` bytes from `offset` of a file that does not change. Raises as `read_bytes` does."""
    uri = absolute(uri)

    def read(fs: pafs.FileSystem, path: str) -> bytes:
        if is_s3(uri):
            data: bytes = s3.opened(uri, s3.account(uri)).read_at(size, offset)
        else:
            with fs.open_input_file(path) as file:
                data = file.read_at(size, offset)
        _refuse_part(len(data), size)
        return data

    return attempt(uri, "read", read)


def download(uri: str, target: Path, *, max_bytes: int) -> None:
    """Copy one file to the local path `target`, piece by piece. Raises as `read_bytes` does."""

    def copy(fs: pafs.FileSystem, path: str) -> None:
        with fs.open_input_file(path) as file, target.open("wb") as copied:
            size = _checked_size(uri, file.size(), max_bytes)
            while piece := file.read(DOWNLOAD_PIECE_BYTES):
                copied.write(piece)
            _refuse_part(copied.tell(), size)
            disk.sync(copied)
        disk.sync_folder(target.parent)

    attempt(uri, "read", copy)


def write_bytes(uri: str, data: bytes) -> None:
    """Write one file atomically: nobody can see a partial one. Missing local folders are created."""
    uri = absolute(uri)

    def write(fs: pafs.FileSystem, path: str) -> None:
        if not is_s3(uri):
            disk.write(Path(path), data)
            return
        with fs.open_output_stream(path) as stream:
            stream.write(data)

    attempt(uri, "write", write)


def create(uri: str, data: bytes) -> bool:
    """Write one file atomically if none exists; otherwise return False and change nothing.

    Of several simultaneous attempts exactly one succeeds. Raises StorageError, and ValueError for what is not
    `can_create`.
    """
    uri = absolute(uri)
    if not can_create(uri, data):
        raise ValueError(f"{len(data)} bytes for {uri}: at most {CREATE_BYTES} are created on condition")
    tries = 0

    def write(fs: pafs.FileSystem, path: str) -> bool:
        nonlocal tries
        tries += 1
        if not is_s3(uri):
            return disk.create(Path(path), data)
        if s3.create(uri, data):
            return True
        if tries == 1:
            return False
        with fs.open_input_file(path) as file:  # the object may come from a request whose answer was lost
            return bool(file.size() == len(data) and file.read() == data)

    return attempt(uri, "write", write)


def can_create(uri: str, data: bytes) -> bool:
    """Return whether the data is small enough for a conditional write in one request; on a disk it always is."""
    return not is_s3(absolute(uri)) or len(data) <= CREATE_BYTES


def exists(uri: str) -> bool:
    """Return whether a file or a folder (on S3: any object below it) exists."""
    return _is_there(uri, "look for")


def stamp(uri: str) -> str:
    """Return what changes when a file is written anew: its size and the time of its last change."""

    def look(fs: pafs.FileSystem, path: str) -> str:
        info = fs.get_file_info(path)
        return "" if info.type == pafs.FileType.NotFound else f"{info.size}-{info.mtime_ns}"

    found = attempt(uri, "read", look)
    if not found:
        raise nothing_there(absolute(uri))
    return found


def list_files(uri: str, *, suffixes: tuple[str, ...] = ()) -> list[StoredFile]:
    """List every file below a folder, sorted by URI; with `suffixes` (any case) only those. Raises NotFoundError."""
    root = absolute(uri)
    lowered = tuple(suffix.lower() for suffix in suffixes)

    def walk(fs: pafs.FileSystem, path: str) -> list[StoredFile]:
        prefix = S3 if is_s3(root) else ""
        # On a disk, subfolders may be deleted during the listing, but the folder itself must exist.
        infos = fs.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=not prefix))
        if not infos and not prefix and not Path(path).exists():
            raise FileNotFoundError(errno.ENOENT, "no such folder", path)
        return [
            StoredFile(prefix + info.path, info.size)
            for info in infos
            if info.type == pafs.FileType.File and (not lowered or info.path.lower().endswith(lowered))
        ]

    return sorted(attempt(root, "list", walk), key=lambda file: file.uri)


def delete_folder(uri: str) -> None:
    """Delete a folder and everything below it; a missing folder is no error. Refuses a whole bucket and '/'."""
    root = absolute(uri)
    parent(root)
    if root == "/":
        raise ConfigError("refusing to delete '/'")

    def delete(fs: pafs.FileSystem, path: str) -> None:
        # Another process may delete at the same time, and a request whose answer was lost has already deleted.
        with contextlib.suppress(FileNotFoundError):
            if fs.get_file_info(path).type != pafs.FileType.NotFound:
                fs.delete_dir(path)

    attempt(root, "delete", delete)


def delete_file(uri: str) -> None:
    """Delete one file; a missing file is no error."""

    def delete(fs: pafs.FileSystem, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            fs.delete_file(path)

    attempt(uri, "delete", delete)


def check_readable(uri: str) -> None:
    """Raise a clear error within seconds if `uri` (a file or a folder) cannot be read."""
    with patience(CHECK_SECONDS):
        if not _is_there(uri, "read"):
            raise nothing_there(absolute(uri))


def check_writable(uri: str) -> None:
    """Raise a clear error within seconds if nothing can be written below the folder `uri`. Leaves nothing behind."""
    probe = join(uri, f".write-check-{uuid.uuid4().hex}")
    with patience(CHECK_SECONDS):
        write_bytes(probe, b"tpn_ray")
        delete_file(probe)


def _is_there(uri: str, verb: str) -> bool:
    return attempt(uri, verb, lambda fs, path: bool(fs.get_file_info(path).type != pafs.FileType.NotFound))


def _checked_size(uri: str, size: int, max_bytes: int | None) -> int:
    if max_bytes is not None and size > max_bytes:
        raise StorageError(f"{absolute(uri)} holds {size} bytes, more than the limit of {max_bytes}")
    return size


def _refuse_part(came: int, size: int) -> None:
    if came != size:
        raise s3.RequestError(s3.Answer(s3.UNREACHABLE, f"truncated body: {came} of {size} bytes came"))
