"""The errors a user can meet. Runs anywhere.

    TpnRayError                 one clear message: the thing, the value, the remedy
    |-- ConfigError             a recipe field or a flag that cannot be (also a ValueError)
    |-- StorageError            an object store or a disk that refuses
    |   |-- NotFoundError       nothing there
    |   `-- StorageRefusedError no permission, no space: trying again later changes nothing
    |-- DamagedError            a file of this project is not what was written
    |-- LeaseError              another job works on the same run, campaign or dataset
    |   `-- SupersededError     another group of workers of the same job does
    |-- ManifestError           annotations that do not fit the videos
    |-- BadVideo                one video that cannot be used; carries a `reason` from REASONS
    |-- BudgetError             more bad videos than the budget allows
    |-- ResourceError           a cluster that cannot give what was asked for
    |-- CheckpointError         a checkpoint that is foreign, or of another recipe
    |   `-- TornCheckpointError files of it are missing or damaged
    |-- TrackingError           the tracking server cannot be used
    `-- TrainingError           training stopped: a worker failed, or the loss is not a number

A job prints the message of a TpnRayError without a traceback and exits with status 2.
"""

from __future__ import annotations

from typing import Any


class TpnRayError(Exception):
    """Root of the tree: catch this to catch everything the project raises on purpose."""


class ConfigError(TpnRayError, ValueError):
    """A recipe field or a flag has a value that cannot be."""


class StorageError(TpnRayError):
    """Reading from or writing to storage failed for good."""


class NotFoundError(StorageError):
    """The bucket, folder or object does not exist."""


class StorageRefusedError(StorageError):
    """Storage refuses in a way that time does not mend: wrong credentials, no permission, a full disk."""


class DamagedError(TpnRayError):
    """A file that this project wrote is not what was written; the message says how to go on."""


class LeaseError(TpnRayError):
    """Another job works on the same run, campaign or dataset, or has taken it over."""


class SupersededError(LeaseError):
    """Another group of workers of the same job has taken this one's place."""


class ManifestError(TpnRayError):
    """The annotations and the videos do not fit together."""


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
"""Why a video can be unusable: the closed list that reports count by."""


class BadVideo(TpnRayError):  # noqa: N818 - it is a finding about a video, not a fault of the program
    """One video cannot be used. It becomes a row with a reason; the run goes on within its budget."""

    def __init__(self, reason: str, message: str) -> None:
        if reason not in REASONS:
            raise ValueError(f"unknown reason {reason!r}; known: {', '.join(REASONS)}")
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[BadVideo], tuple[str, str]]:
        return BadVideo, (self.reason, str(self))


class BudgetError(TpnRayError):
    """More videos turned out bad than `--max-bad` allows."""


class ResourceError(TpnRayError):
    """The cluster cannot give the resources asked for."""


class CheckpointError(TpnRayError):
    """A checkpoint cannot be used here."""


class TornCheckpointError(CheckpointError):
    """Files of a checkpoint are missing or are not what its manifest says."""


class TrackingError(TpnRayError):
    """The tracking server cannot be used."""


class TrainingError(TpnRayError):
    """Training stopped before its end."""


def difference(old: Any, new: Any, name: str = "") -> list[str]:
    """What differs between two nested dicts of plain values, for a message: one line a value, named as in optim.lr."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted(old.keys() | new.keys()):
            lines += difference(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
        return lines
    return [] if old == new else [f"{name}: {old!r} then, {new!r} now"]
