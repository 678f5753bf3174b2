"""The errors that users may encounter. Runs anywhere.

    TpnRayError                 root; its message names the thing, the value, and the remedy
    |-- ConfigError             a recipe field or a flag has an invalid value (also a ValueError)
    |-- StorageError            an object store or a disk failed
    |   |-- NotFoundError       the bucket, folder, or object does not exist
    |   `-- StorageRefusedError no permission or no space: retrying does not help
    |-- DamagedError            a file of this project is not what was written
    |-- LeaseError              another job is working on the same run, campaign, or dataset
    |   `-- SupersededError     a newer worker group of the same job has replaced this one
    |-- ManifestError           the annotations do not match the videos
    |-- BadVideo                one video cannot be used; carries a `reason` from REASONS
    |-- BudgetError             more videos are bad than the budget allows
    |-- ResourceError           the cluster cannot provide what was asked for
    |-- CheckpointError         a checkpoint is foreign, or belongs to another recipe
    |   `-- TornCheckpointError files of a checkpoint are missing or damaged
    |-- TrackingError           the tracking server cannot be used
    `-- TrainingError           training stopped: a worker failed, or the loss is not finite

A job prints the message of a TpnRayError without a traceback and exits with status 2.
"""

from __future__ import annotations

from typing import Any


class TpnRayError(Exception):
    """The root of the tree: catch this to catch everything the project raises on purpose."""


class ConfigError(TpnRayError, ValueError):
    """A recipe field or a flag has an invalid value."""


class StorageError(TpnRayError):
    """Reading from or writing to storage failed permanently."""


class NotFoundError(StorageError):
    """The bucket, folder, or object does not exist."""


class StorageRefusedError(StorageError):
    """Storage refuses, and retrying does not help: wrong credentials, no permission, or a full disk."""


class DamagedError(TpnRayError):
    """A file that this project wrote is not what was written; the message says how to proceed."""


class LeaseError(TpnRayError):
    """Another job is working on the same run, campaign, or dataset, or has taken it over."""


class SupersededError(LeaseError):
    """A newer worker group of the same job has replaced this one."""


class ManifestError(TpnRayError):
    """The annotations and the videos do not match."""


REASONS = {
    "missing": "the object is not in storage",
    "unreadable": "storage would not give the bytes",
    "empty": "the file has no bytes",
    "not_video": "no video stream could be found in it",
    "no_picture": "a video stream, but no frame could be decoded",
    "too_short": "fewer frames than the clip needs",
    "truncated": "frames that the file announces are not in it",
    "damaged": "the decoder refused some of the frames",
    "too_large": "more bytes, pixels or frames than the limits allow",
    "timeout": "decoding took longer than the limit allows",
    "decoder_error": "the decoder failed on it in an unforeseen way",
}
"""The reasons why a video cannot be used. Reports count by this closed list."""


class BadVideo(TpnRayError):  # noqa: N818 - it is a finding about a video, not a fault of the program
    """One video cannot be used. It is recorded as a row with a reason; the run continues within its budget."""

    def __init__(self, reason: str, message: str) -> None:
        if reason not in REASONS:
            raise ValueError(f"unknown reason {reason!r}; known: {', '.join(REASONS)}")
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[BadVideo], tuple[str, str]]:
        return BadVideo, (self.reason, str(self))


class BudgetError(TpnRayError):
    """More videos are bad than `--max-bad` allows."""


class ResourceError(TpnRayError):
    """The cluster cannot provide the requested resources."""


class CheckpointError(TpnRayError):
    """A checkpoint cannot be used here."""


class TornCheckpointError(CheckpointError):
    """Files of a checkpoint are missing or do not match its manifest."""


class TrackingError(TpnRayError):
    """The tracking server cannot be used."""


class TrainingError(TpnRayError):
    """Training stopped early."""


def difference(old: Any, new: Any, name: str = "") -> list[str]:
    """List the differences between two nested dicts of plain values for a message: a line per key, such as optim.lr."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted(old.keys() | new.keys()):
            lines += difference(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
        return lines
    return [] if old == new else [f"{name}: {old!r} then, {new!r} now"]
