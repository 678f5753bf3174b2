"""One writer per folder: a lease in storage whose number fences off former holders. Runs anywhere.

    lease/00000007.json         who holds the lease and since when, a heartbeat count, and whether it was released
    lease/start-00000012.json   the newest worker group in a run's folder: older ones may no longer write

Numbers only increase. Taking the lease means creating the next number, which only one process can do. Only the holder
rewrites its file. A job that finds an unreleased lease takes it over at once if the holder was a process on this
machine that is gone. Otherwise it watches the count by its own clock: if the count rises, the holder is alive; if it
does not change for SILENT_SECONDS, the holder has lost the lease. Clocks of different machines are never compared.

Only a higher number takes the lease away, so a holder keeps working while storage is out of reach. Before each decisive
write, a writer checks for a higher number (`Token.check`). Files that must not change are created with `Token.write`,
which never replaces what a later holder wrote. One gap remains: a process that is paused for SILENT_SECONDS in the
middle of a deletion, or of an upload of more than storage.CREATE_BYTES to an object store. If that replaces the tensors
of a checkpoint, they no longer match the hashes in its manifest, and the checkpoint is skipped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import json
import os
import re
import shlex
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpn_ray import storage
from tpn_ray.errors import LeaseError, NotFoundError, StorageError, SupersededError
from tpn_ray.redaction import redacted

FOLDER = "lease"
RENEW_SECONDS = 5.0
"""Interval at which a holder shows that it is alive."""
SILENT_SECONDS = 45.0
"""Time without a sign of life after which a holder loses its lease to the next job that asks for it."""
WATCH_SECONDS = 1.0
COUNTED_SECONDS = 3.0
"""Longest time between two looks that counts as silence: an unreachable store or a paused watcher is not silence."""
RELEASE_SECONDS = 2.0
"""Longest wait for storage when releasing: a lease that is not released expires by itself."""
REPLACE_TRIES = 5
COMMAND_CHARACTERS = 200

_LEASE, _START = "", "start-"
"""Prefixes of the file names, before the number."""


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True, kw_only=True)
class Token:
    """What a process needs to write under a lease, whether or not it is the holder. Picklable."""

    folder: str
    """The folder that the lease protects."""
    number: int
    what: str
    """Description of the folder for messages, such as "run demo"."""
    run: str = ""
    """Folder of the training run, `folder` or below it, in which only the newest worker group may write."""
    start: int = 0
    """Number of that worker group."""

    def check(self) -> None:
        """Raise LeaseError if another job now holds the lease, or StorageError if that cannot be determined."""
        names = _names(self.folder)
        newest = _highest(_LEASE, names)
        if newest > self.number:
            raise LeaseError(
                f"another job has taken over the {self.what} in {self.folder}: {_describe(_read(self.folder, newest))}."
                f" This one had shown no sign of life for {SILENT_SECONDS:g} s, or was asked to end. It stops here and "
                "writes nothing more; what it had committed is kept, and the other job continues from there"
            )
        if newest < self.number:
            raise LeaseError(f"{self.folder}/{FOLDER} is gone: the {self.what} was deleted or moved; this job stops")
        if self.start and self.start < _highest(_START, names if self.run == self.folder else _names(self.run)):
            raise SupersededError(f"a newer worker group is training the {self.what}; this one stops")

    def begin(self, run_uri: str) -> Token:
        """Make a new worker group the only one that may write to a run, and return its token."""
        self.check()
        number = _highest(_START, _names(run_uri)) + 1
        while not storage.create(_uri(run_uri, number, _START), _encoded({"id": uuid.uuid4().hex})):
            number += 1
        _prune(run_uri, _START, number)
        return dataclasses.replace(self, run=run_uri, start=number)

    def write(self, uri: str, data: bytes) -> None:
        """Write a file that only a later holder may replace. Raises LeaseError and StorageError.

        An existing file was left by a failed attempt or by a former holder. Data too large for a conditional create is
        written unconditionally, right after checking the lease.
        """
        if not storage.can_create(uri, data):
            self.check()
            storage.write_bytes(uri, data)
            return
        for _ in range(REPLACE_TRIES):
            if storage.create(uri, data):
                return
            self.check()
            storage.delete_file(uri)
        raise StorageError(f"cannot write {uri}: another process writes it over and over")


class Lease:
    """A lease held by this process and renewed by a thread until it is released or lost."""

    def __init__(self, token: Token, content: dict[str, Any]) -> None:
        self.token = token
        self._content, self._lock, self._ended = content, threading.Lock(), threading.Event()
        self._lost: LeaseError | None = None
        threading.Thread(target=self._renew, name="lease", daemon=True).start()

    def look(self) -> None:
        """Raise LeaseError if the lease is known to be lost, without asking storage."""
        if self._lost:
            raise self._lost

    def release(self) -> None:
        """Release the lease for the next job. Waits for storage at most RELEASE_SECONDS, and raises nothing."""
        self._ended.set()
        releasing = threading.Thread(target=self._write, kwargs={"released": True}, name="lease end", daemon=True)
        releasing.start()
        releasing.join(RELEASE_SECONDS)

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            try:
                self.token.check()
            except LeaseError as error:
                self._lost = error
                return
            except StorageError:
                continue  # out of reach for everybody, so nobody else can take it either
            self._write()

    def _write(self, *, released: bool = False) -> None:
        with self._lock, contextlib.suppress(StorageError):
            if self._lost or (self._ended.is_set() and not released):
                return
            self._content |= {"count": self._content["count"] + 1, "released": released}
            storage.write_bytes(_uri(self.token.folder, self.token.number), _encoded(self._content))


@contextlib.contextmanager
def held(folder: str, what: str, *, flag: str = "--name", say: Callable[[str], None] = _say) -> Iterator[Lease]:
    """Hold the lease for a folder while the `with` block runs.

    `what` describes the folder in messages, and `flag` names the flag that chooses another one. Raises LeaseError,
    which names the holder.
    """
    lease = take(folder, what, flag=flag, say=say)
    try:
        yield lease
    finally:
        lease.release()


def take(folder: str, what: str, *, flag: str = "--name", say: Callable[[str], None] = _say) -> Lease:
    """Take the lease for a folder. Raises LeaseError if a live job holds it.

    Detecting a live holder takes at most RENEW_SECONDS and one look. A holder that died elsewhere, or is paused, loses
    the lease after SILENT_SECONDS.
    """
    folder = storage.absolute(folder)
    while True:
        number = _highest(_LEASE, _names(folder))
        if number and not _may_be_taken(folder, number, what, flag, say):
            continue
        content, taken, uri = _myself(), number + 1, _uri(folder, number + 1)
        if not storage.create(uri, _encoded(content)):
            continue
        if storage.is_s3(uri) and storage.create(uri, _encoded(content) + b"\n"):
            say(
                f"warning: the store of {folder} ignores conditional writes (If-None-Match: *), so two jobs that start "
                f"the {what} at the same moment are not kept apart; one that starts later is refused as usual"
            )
        if _highest(_LEASE, _names(folder)) != taken:  # the number was free because it had been used and deleted
            storage.delete_file(uri)
            continue
        _prune(folder, _LEASE, taken)
        return Lease(Token(folder=folder, number=taken, what=what), content)


def _may_be_taken(folder: str, number: int, what: str, flag: str, say: Callable[[str], None]) -> bool:
    """Wait until it is clear whether that lease has ended; return False if a newer one has appeared by then.

    Raises LeaseError if its holder is alive.
    """
    first, silent, told = _read(folder, number), 0.0, False
    looked = time.monotonic()
    while True:
        if _highest(_LEASE, _names(folder)) != number:
            return False
        now = _read(folder, number)
        if has_ended(now):
            return True
        first = first or now  # in case the first read failed
        if now.get("count") != first.get("count"):
            raise LeaseError(
                f"another job is working on the {what} in {folder}: {_describe(now)}; its last sign of life came "
                f"{time.monotonic() - looked:.0f} s ago. Wait for it to end, stop it, or choose another {flag}"
            )
        silent, looked = silent + min(COUNTED_SECONDS, time.monotonic() - looked), time.monotonic()
        if silent >= SILENT_SECONDS:
            say(f"the {what} is taken over: {_describe(now)} has shown no sign of life for {SILENT_SECONDS:g} s")
            return True
        if silent > RENEW_SECONDS + WATCH_SECONDS and not told:
            told = True
            say(
                f"the {what} in {folder} was started by another job, {_describe(now)}, which shows no sign of life; it "
                f"is taken over if none comes within {SILENT_SECONDS:g} s"
            )
        time.sleep(WATCH_SECONDS)


def holder(folder: str) -> dict[str, Any]:
    """Return the content of a folder's newest lease, which describes its last holder; empty if there was none."""
    number = _highest(_LEASE, _names(folder))
    return _read(folder, number) if number else {}


def has_ended(content: dict[str, Any]) -> bool:
    """Return whether a lease has ended: it was released, or its holder was a process on this machine that is gone."""
    if content.get("released"):
        return True
    process, machine = content.get("process"), content.get("machine")
    if not isinstance(process, int) or not machine or machine != _machine():
        return False
    return _is_gone(process, content.get("started"))


# --- processes


def _myself() -> dict[str, Any]:
    """Describe this process as the holder of a lease."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return {
        "id": uuid.uuid4().hex,
        "user": user,
        "host": socket.gethostname(),
        "machine": _machine(),
        "process": os.getpid(),
        "started": _started(os.getpid()),
        "job": _submission(),
        "command": redacted(shlex.join(sys.argv))[:COMMAND_CHARACTERS],
        "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "count": 0,
        "released": False,
    }


def _machine() -> str:
    """Return an identifier for this boot of this machine and this container, which has process numbers of its own.

    The identifier is empty if the system does not provide it.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _is_gone(process: int, started: object) -> bool:
    """Return whether a process on this machine has ended, even if its number has been reused."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # the process belongs to another user
        pass
    now = _started(process)
    return now is not None and now != started


def _started(process: int) -> int | None:
    """Return when a process on this machine started, in ticks since the machine booted.

    The value 0 means that the process has ended, None that its start cannot be read.
    """
    try:
        status = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return 0 if status[0] in "ZX" else int(status[19])  # a zombie has ended


def _submission() -> str:
    """Return the submission id if `ray job submit` started this process, or an empty string."""
    try:
        metadata = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("metadata", {})
    except (ValueError, AttributeError):
        return ""
    return str(metadata.get("job_submission_id", ""))


def _describe(content: dict[str, Any]) -> str:
    if "host" not in content:
        return "a job whose lease cannot be read"
    job = f", Ray job {content['job']}" if content.get("job") else ""
    return (
        f"{content.get('user')} on {content['host']}, process {content.get('process')}{job}, since "
        f"{content.get('since')} ({content.get('command')})"
    )


# --- files


def _uri(folder: str, number: int, kind: str = _LEASE) -> str:
    return storage.join(folder, FOLDER, f"{kind}{number:08d}.json")


def _encoded(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()


def _names(folder: str) -> list[str]:
    try:
        files = storage.list_files(storage.join(folder, FOLDER))
    except NotFoundError:
        return []
    return [storage.name(file.uri) for file in files]


def _numbers(kind: str, names: list[str]) -> list[int]:
    return [int(found[1]) for name in names if (found := re.fullmatch(rf"{kind}(\d{{8}})\.json", name))]


def _highest(kind: str, names: list[str]) -> int:
    return max(_numbers(kind, names), default=0)


def _read(folder: str, number: int) -> dict[str, Any]:
    """Return the content of a lease file; empty if the file is gone or incomplete."""
    try:
        content = json.loads(storage.read_bytes(_uri(folder, number)))
    except (NotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _prune(folder: str, kind: str, number: int) -> None:
    """Delete obsolete lower numbers, as far as storage allows."""
    with contextlib.suppress(StorageError):
        for old in _numbers(kind, _names(folder)):
            if old < number:
                storage.delete_file(_uri(folder, old, kind))
