"""Decoded clips that several trials want: the first that wants a block decodes it, the others read it from local disk.

Trials of a campaign that differ in lambda, alpha or the schedule see the same clips in the same order, so a block is
the same for all of them, and comes back bit for bit. Runs on Ray Data workers; no Ray.
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
"""Longest wait for a block that somebody else decodes; then it is decoded here."""
LOOK_SECONDS = 0.02
ROOM = 0.9
"""Share of the limit that is left after the oldest blocks made room."""


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """Who shares decoded clips, and how many."""

    limit_bytes: int
    """Local disk of a node for clips that other runs want too; 0 shares nothing."""
    among: str
    """Name of those who share, such as a campaign: videos that change between two campaigns are decoded again."""


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """A folder of blocks on one node, which may be deleted at any time."""

    limit_bytes: int
    folder: str = f"{tempfile.gettempdir()}/tpn_ray-clips-{os.getuid()}"

    def get(self, key: str, make: Make) -> Rows:
        """The block of that key: read, or made here, or waited for while another process makes it."""
        folder = Path(self.folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = hashlib.sha256(key.encode()).hexdigest()[:40]
        place, claim = folder / f"{name}.npz", folder / f"{name}.claim"
        deadline = time.monotonic() + WAIT_SECONDS
        while (found := _read(place)) is None:
            if _claimed(claim):
                try:
                    made = make()
                    if not (made[rows.REASON] != "").any():  # what storage would not give today, it may give tomorrow
                        self._write(place, made)
                    return made
                finally:
                    claim.unlink(missing_ok=True)
            if time.monotonic() > deadline:
                claim.unlink(missing_ok=True)  # its owner is gone, or too slow to be waited for
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
        except OSError:  # a full disk: the block is made all the same
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
    """A block from the shelf of this node, or made here where nothing is shared (`limit_bytes` 0).

    `what` and `arrays` say which clips of the source are in it, and the epoch that their augmentation is drawn for.
    """
    if not limit_bytes:
        return make()
    settings = (source.manifest.version, source.clip, source.augment, source.seed, source.developed, what)
    key = f"{settings!r} {[array.tobytes().hex() for array in arrays]}"
    return Shelf(limit_bytes=limit_bytes).get(key, make)


def _read(place: Path) -> Rows | None:
    try:
        with place.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            block = {name: stored[name] for name in stored.files}
        os.utime(place)  # the blocks that were not wanted for longest go first
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
    return block


def _claimed(claim: Path) -> bool:
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True
