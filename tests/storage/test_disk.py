"""Files on a disk: whole or not there, and durable."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tpn_ray import storage
from tpn_ray.errors import StorageError


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
