"""Files on a disk that are written atomically and are durable when a call returns: file and folder are synced.

Runs anywhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def write(target: Path, data: bytes) -> None:
    """Write a file, creating missing folders."""
    with _beside(target, data) as temporary:
        temporary.replace(target)
    sync_folder(target.parent)


def create(target: Path, data: bytes) -> bool:
    """Write a file if none exists; return False if one does."""
    with _beside(target, data) as temporary:
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            # The file system has no hard links, so others may see this file before it is complete.
            try:
                _write_new(target, data)
            except FileExistsError:
                return False
    sync_folder(target.parent)
    return True


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Some network file systems cannot, and need not: they do not defer names."""
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # a folder that is writable but not readable
        return
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS):
            raise
    finally:
        os.close(opened)


def sync(file: BinaryIO) -> None:
    """Make what was written to an open file durable."""
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _beside(target: Path, data: bytes) -> Iterator[Path]:
    """Write a file under another name in the folder of `target`; it is removed at the end if it is still there."""
    missing = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync_folder(folder.parent)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        _write_new(temporary, data)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _write_new(target: Path, data: bytes) -> None:
    with target.open("xb") as file:
        file.write(data)
        sync(file)
