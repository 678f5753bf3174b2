"""Shares decoded clips between trials: the first to need a block decodes it, the others read it from local disk.

Trials of a campaign that differ in lambda, alpha, or the schedule see the same clips in the same order, so a block is
the same for all of them, bit for bit. Runs on Ray Data workers; no Ray.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
import uuid
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tpn_ray.clips import rows
from tpn_ray.clips.rows import Rows
from tpn_ray.data.tasks import ClipSource

Make = Callable[[], Rows]

WAIT_SECONDS = 20.0
"""Longest wait for a block that another process decodes; after that it is decoded here."""
LOOK_SECONDS = 0.02
ROOM = 0.9
"""Share of the limit that remains in use after the oldest blocks were removed."""


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """Which runs share decoded clips, and the disk limit for them."""

    limit_bytes: int
    """Disk space of a node for clips shared with other runs, in bytes; 0 disables sharing."""
    among: str
    """Name of the group that shares, such as a campaign: videos that change between two campaigns are decoded again."""


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """A folder of blocks on one node, which may be deleted at any time."""

    limit_bytes: int
    folder: str = f"{tempfile.gettempdir()}/tpn_ray-clips-{os.getuid()}"

    def get(self, key: str, make: Make) -> Rows:
        """Return the block of a key: read it, make it here, or wait while another process makes it."""
        folder = Path(self.folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = hashlib.sha256(key.encode()).hexdigest()[:40]
        place, claim = folder / f"{name}.npz", folder / f"{name}.claim"
        deadline = time.monotonic() + WAIT_SECONDS
        while (found := _read(place)) is None:
            if _claimed(claim):
                try:
                    made = make()
                    if not (made[rows.REASON] != "").any():  # what storage fails to deliver now, it may deliver later
                        self._write(place, made)
                    return made
                finally:
                    claim.unlink(missing_ok=True)
            if time.monotonic() > deadline:
                claim.unlink(missing_ok=True)  # its owner is gone or too slow
                return make()
            time.sleep(LOOK_SECONDS)
        return found

    def _write(self, place: Path, block: Rows) -> None:
        temporary = place.with_name(f".{uuid.uuid4().hex}")
        try:
            with temporary.open("wb") as file:
                np.savez(file, **{name: np.asarray(column) for name, column in block.items()})  # type: ignore[arg-type]
            temporary.replace(place)
            self._make_room()
        except OSError:  # a full disk must not prevent making the block
            temporary.unlink(missing_ok=True)

    def _make_room(self) -> None:
        files = []
        for file in Path(self.folder).glob("*.npz"):
            with contextlib.suppress(FileNotFoundError):
                files.append((file.stat().st_mtime, file.stat().st_size, file))
        total = sum(size for _, size, _ in files)
        if total <= self.limit_bytes:
            return
        for _, size, file in sorted(files):
            file.unlink(missing_ok=True)
            total -= size
            if total <= ROOM * self.limit_bytes:
                return


def shared(limit_bytes: int, source: ClipSource, what: str, arrays: Sequence[NDArray[Any]], make: Make) -> Rows:
    """Return a block from this node's shelf, or make it here if nothing is shared (`limit_bytes` 0).

    `what` and `arrays` identify the clips of the source that the block holds, and the epoch for which their
    augmentation is drawn.
    """
    if not limit_bytes:
        return make()
    draws = (source.seed, source.repeats)
    settings = (source.manifest.version, source.clip, source.augment, draws, source.developed, what)
    key = f"{settings!r} {[array.tobytes().hex() for array in arrays]}"
    return Shelf(limit_bytes=limit_bytes).get(key, make)


def _read(place: Path) -> Rows | None:
    try:
        with place.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            block = {name: stored[name] for name in stored.files}
        os.utime(place)  # the least recently used blocks are deleted first
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
    return block


def _claimed(claim: Path) -> bool:
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True
