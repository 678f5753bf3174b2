"""An object store as a pyarrow filesystem, for Ray Tune. Runs anywhere, including where it was unpickled."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs as pafs

from tpn_ray.errors import NotFoundError, StorageError
from tpn_ray.storage import files, s3
from tpn_ray.storage.retry import attempt
from tpn_ray.storage.uri import S3, absolute, is_s3

T = TypeVar("T")


def patient_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return a filesystem and the path in it, for code that takes no URI.

    Requests to an object store are retried as everywhere in this package; pyarrow's own filesystem loses its retry
    settings when it is pickled.
    """
    uri = absolute(uri)
    return (pafs.PyFileSystem(_Patient()), uri.removeprefix(S3)) if is_s3(uri) else (pafs.LocalFileSystem(), uri)


def _do(act: Callable[..., T], path: str, *arguments: Any) -> T:
    try:
        return act(S3 + path, *arguments)
    except NotFoundError as error:
        raise FileNotFoundError(str(error)) from error
    except StorageError as error:
        raise OSError(str(error)) from error


def _patiently(operation: str, verb: str) -> Callable[..., None]:
    def operate(_: object, path: str, *more: str) -> None:
        _do(attempt, path, verb, lambda fs, there: getattr(fs, operation)(there, *more))

    return operate


class _Patient(pafs.FileSystemHandler):  # type: ignore[misc]  # pyarrow's classes are untyped here
    """A handler for small files, which are read and written whole; paths have no "s3://"."""

    __hash__ = None  # type: ignore[assignment]

    copy_file = _patiently("copy_file", "write")
    move = _patiently("move", "write")
    delete_file = _patiently("delete_file", "delete")
    delete_dir = _patiently("delete_dir", "delete")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Patient)

    def get_type_name(self) -> str:
        return "s3"

    def normalize_path(self, path: str) -> str:
        return path

    def create_dir(self, path: str, recursive: bool) -> None:
        _do(attempt, path, "write", lambda fs, there: fs.create_dir(there, recursive=recursive))

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return [_do(attempt, path, "look for", lambda fs, there: fs.get_file_info(there)) for path in paths]

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        return _do(attempt, selector.base_dir, "list", lambda fs, _: fs.get_file_info(selector))

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.BufferReader(_do(files.read_bytes, path))

    open_input_stream = open_input_file

    def open_output_stream(self, path: str, metadata: object) -> pa.NativeFile:
        def put(data: bytes) -> None:
            # pyarrow closes the files that it copies on its own threads, all at once, and a write of its S3 filesystem
            # waits for these threads: with more files than threads, for ever.
            _do(attempt, path, "write", lambda *_: s3.put(S3 + path, data))

        return pa.PythonFile(_Upload(put), mode="w")

    def _refuse(self, *_: object) -> None:
        raise NotImplementedError("Ray Tune asks for no such thing")

    delete_dir_contents = delete_root_dir_contents = open_append_stream = _refuse


class _Upload(io.BytesIO):
    """Buffers what is written until it is closed."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        super().__init__()
        self._write = write

    def close(self) -> None:
        if not self.closed:
            data = self.getvalue()
            super().close()
            self._write(data)
