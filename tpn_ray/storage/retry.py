"""How long to wait for an unavailable store, and what to report meanwhile. Runs anywhere."""

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
"""Variable that passes `--storage-seconds` to every process of a job."""
PATIENCE_SECONDS = 300.0
CHECK_SECONDS = 10.0
"""Patience of checks at the start of a job: a store that does not answer then usually has a wrong address."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 10.0
TELL_SECONDS = 10.0
"""Waiting time after which the user is told that a store is unavailable."""

T = TypeVar("T")

_shorter: ContextVar[float | None] = ContextVar("shorter", default=None)
"""Patience of a `with patience(...)` block, in its thread."""


def patience_seconds() -> float:
    """Return the longest time that an operation waits for a store that is temporarily unavailable."""
    process = float(os.environ.get(PATIENCE, PATIENCE_SECONDS))
    here = _shorter.get()
    return process if here is None else min(process, here)


def set_patience(seconds: float) -> None:
    """Set the patience of this process and of those that it starts. Raises ConfigError for an invalid value."""
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"storage_seconds={seconds:g} must be 0 (never wait) or more")
    os.environ[PATIENCE] = f"{seconds:g}"


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Limit the waiting time of this thread's storage requests inside the block to `seconds`."""
    token = _shorter.set(seconds)
    try:
        yield
    finally:
        _shorter.reset(token)


def tell_outages(tell: Callable[[str], None]) -> None:
    """Report this process's storage outages through `tell`, from any thread. By default they are logged."""
    _outage.tell = tell


def next_wait(attempts: int, spent_seconds: float, patience_seconds: float, jitter: float) -> float | None:
    """Return the wait before the next attempt, or None once the patience is exhausted.

    It is a share, `jitter` in [0, 1), of 0.5, 1, 2, 4, 8, 10, 10 ... seconds: full jitter keeps thousands of tasks from
    returning at the same moment. The last attempt is made just when the patience ends.
    """
    if spent_seconds >= patience_seconds:
        return None
    span = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** min(attempts - 1, 16))
    return min(jitter * span, patience_seconds - spent_seconds)


def attempt(uri: str, verb: str, act: Callable[[pafs.FileSystem, str], T]) -> T:
    """Run one operation with a filesystem and the path in it, and repeat it while its failure is transient.

    Raises StorageError for a permanent failure.
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
    """Reports an unavailable store: once that it is being waited for, and once that it is back."""

    def __init__(self) -> None:
        self.tell: Callable[[str], None] = logging.getLogger("tpn_ray").warning
        self._lock = threading.Lock()
        self._told, self._over = "", -math.inf

    def waited(self, seconds: float, patience: float) -> None:
        """Note that an operation has failed again after `seconds` and keeps waiting."""
        store = s3.store()
        with self._lock:
            seconds = min(seconds, time.monotonic() - self._over)  # operations slow to notice the end are no news
            if seconds < TELL_SECONDS or self._told == store:
                return
            self._told = store
        self.tell(
            f"storage at {store} does not answer or refuses requests; waiting up to {patience:g} s (--storage-seconds)"
        )

    def over(self) -> None:
        """Note that an operation succeeded."""
        if not self._told:  # nearly always: no lock needed
            return
        with self._lock:
            store, self._told, self._over = self._told, "", time.monotonic()
        if store:
            self.tell(f"storage at {store} answers again")


_outage = _Outage()
