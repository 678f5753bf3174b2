"""How long a store that is away is waited for, and what is said meanwhile. Runs anywhere."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs as pafs

from tpn_ray.errors import ConfigError
from tpn_ray.storage import s3
from tpn_ray.storage.diagnosis import explain, heard, may_pass
from tpn_ray.storage.uri import S3, absolute, is_s3

PATIENCE = "TPN_RAY_STORAGE_SECONDS"
"""Variable that hands `--storage-seconds` to every process of a job."""
PATIENCE_SECONDS = 300.0
CHECK_SECONDS = 10.0
"""Patience of checks at the start of a job: a store that does not answer then has a wrong address, mostly."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 10.0
TELL_SECONDS = 10.0
"""How long a store is waited for before the user is told."""

T = TypeVar("T")

_shorter: ContextVar[float | None] = ContextVar("shorter", default=None)
"""Patience of a `with patience(...)` block, in its thread."""


def patience_seconds() -> float:
    """Return the longest time that an operation waits for a store that does not answer or refuses for the moment."""
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


def tell_outages(tell: Callable[[str], None]) -> None:
    """Have this process tell of a store that is away by `tell`, from any thread. By default it is logged."""
    _outage.tell = tell


def next_wait(attempts: int, spent_seconds: float, patience_seconds: float, jitter: float) -> float | None:
    """Return the wait before the next attempt, or None where the patience is over.

    It is a share, `jitter` in [0, 1), of 0.5, 1, 2, 4, 8, 10, 10 ... seconds: jitter over the whole span keeps
    thousands of tasks from coming back at the same moment. The last attempt is made just when the patience ends.
    """
    if spent_seconds >= patience_seconds:
        return None
    span = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** min(attempts - 1, 16))
    return min(jitter * span, patience_seconds - spent_seconds)


def attempt(uri: str, verb: str, act: Callable[[pafs.FileSystem, str], T]) -> T:
    """Run one operation on a filesystem and the path in it, and repeat it while its failure may pass.

    Raises StorageError for a failure that stands.
    """
    uri = absolute(uri)
    begin, attempts, patient = time.monotonic(), 0, patience_seconds()
    while True:
        attempts += 1
        try:
            if not is_s3(uri):
                return act(pafs.LocalFileSystem(), uri)
            done = act(s3.filesystem(s3.account(uri)), uri.removeprefix(S3))
        except (OSError, pa.ArrowException) as error:
            spent = time.monotonic() - begin
            passes = is_s3(uri) and may_pass(heard(error))
            wait = next_wait(attempts, spent, patient, random.random()) if passes else None
            if wait is None:
                raise explain(uri, verb, error, attempts, spent) from error
            _outage.waited(spent, patient)
            time.sleep(wait)
        else:
            _outage.over()
            return done


class _Outage:
    """Tells of a store that is away: once that it is waited for, and once that it is back."""

    def __init__(self) -> None:
        self.tell: Callable[[str], None] = logging.getLogger("tpn_ray").warning
        self._lock = threading.Lock()
        self._told, self._over = "", -math.inf

    def waited(self, seconds: float, patience: float) -> None:
        """Note that an operation failed again after so many seconds, and goes on waiting."""
        store = s3.store()
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
        """Note that an operation succeeded."""
        if not self._told:  # nearly always: no lock
            return
        with self._lock:
            store, self._told, self._over = self._told, "", time.monotonic()
        if store:
            self.tell(f"storage at {store} answers again")


_outage = _Outage()
