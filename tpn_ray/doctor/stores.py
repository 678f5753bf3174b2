"""Checks of storage as the jobs use it: list, write, read, ranged read, multipart upload, clock. Runs on the driver."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable

from tpn_ray import storage
from tpn_ray.doctor.findings import FAIL, Finding, Verdict, examined, failed, not_here, passed, warned
from tpn_ray.errors import NotFoundError

SMALL_BYTES = 4096
LARGE_BYTES = 24 * 1024**2
"""Size above that of a part, so that the upload has several parts, like that of a checkpoint."""
WARN_SKEW_SECONDS, FAIL_SKEW_SECONDS = 30.0, 300.0
"""Clock differences to warn about and to fail at. S3 refuses requests whose clock is off by 15 minutes."""

WRITE_REMEDY = "the credentials need s3:PutObject and s3:DeleteObject on --storage; a local folder must be writable"
READ_REMEDY = "the credentials need s3:GetObject on it"
LIST_REMEDY = "the credentials need s3:ListBucket on the bucket; check the spelling and AWS_ENDPOINT_URL"
PARTS_REMEDY = (
    "the credentials need s3:PutObject and s3:AbortMultipartUpload, the store must know multipart uploads, and a proxy "
    "before it must let large requests pass (client_max_body_size)"
)
CONDITION_REMEDY = (
    "two jobs that start one run, campaign, or dataset at the same moment are not kept apart: use a store that honors "
    "If-None-Match: * in PutObject, or take care of it"
)
BROKEN_REMEDY = "use another store, or repair this one"
CLOCK_REMEDY = "set this machine's clock by NTP (chrony, systemd-timesyncd): S3 refuses requests of another time"


def examine_storage(uri: str, seconds: float) -> list[Finding]:
    """Write, list, and read below `--storage`; everything created is deleted again."""
    small, large = os.urandom(SMALL_BYTES), os.urandom(LARGE_BYTES)
    folder = storage.join(uri, f".doctor-{uuid.uuid4().hex}")
    one, two = storage.join(folder, "small"), storage.join(folder, "large")
    steps: list[tuple[str, str, Callable[[], Verdict]]] = [
        ("write", WRITE_REMEDY, lambda: written(one, small)),
        ("list", LIST_REMEDY, lambda: listed(folder, [one])),
        ("read", READ_REMEDY, lambda: same(storage.read_bytes(one), small)),
        ("ranged read", READ_REMEDY, lambda: same(storage.read_range(one, 1000, 96), small[1000:1096])),
        ("conditional write", WRITE_REMEDY, lambda: exclusive(one)),
        ("multipart upload", PARTS_REMEDY, lambda: parts(two, large)),
        ("clock", CLOCK_REMEDY, lambda: clock(uri)),
        ("delete", WRITE_REMEDY, lambda: deleted(folder)),
    ]
    return _in_turn("storage", uri, steps, seconds, needed="write")


def examine_data(uri: str, seconds: float) -> list[Finding]:
    """List and read `--data`; nothing is written."""
    if not uri:
        return [examined("data", "--data", lambda: not_here("no --data given"), seconds=seconds, remedy="")]
    files: list[storage.StoredFile] = []

    def look() -> Verdict:
        files.extend(_files(uri))
        return passed(f"{len(files)} files, {sum(file.size_bytes for file in files) / 1e9:.3g} GB")

    steps: list[tuple[str, str, Callable[[], Verdict]]] = [
        ("list", LIST_REMEDY, look),
        ("read", READ_REMEDY, lambda: whole(smallest(files))),
        ("ranged read", READ_REMEDY, lambda: middle(smallest(files))),
    ]
    if storage.is_s3(uri):
        steps.append(("clock", CLOCK_REMEDY, lambda: clock(uri)))
    return _in_turn("data", uri, steps, seconds, needed="list")


def _in_turn(
    what: str, uri: str, steps: list[tuple[str, str, Callable[[], Verdict]]], seconds: float, *, needed: str
) -> list[Finding]:
    """Run the steps one after the other; if the `needed` one fails, only the clock is still checked."""
    findings: list[Finding] = []
    possible = True
    for name, remedy, act in steps:
        tried = act if possible or name == "clock" else lambda: not_here(f"not tried: {needed} failed")
        finding = examined(f"{what}: {name}", uri, tried, seconds=seconds, remedy=remedy)
        findings.append(finding)
        possible = possible and not (name == needed and finding.result == FAIL)
    return findings


def written(uri: str, data: bytes) -> Verdict:
    storage.write_bytes(uri, data)
    return passed(f"{len(data)} bytes")


def listed(folder: str, expected: list[str]) -> Verdict:
    found = [file.uri for file in storage.list_files(folder)]
    if found == expected:
        return passed("what was written is listed")
    return failed(f"{len(found)} files are listed where {len(expected)} was written", "use a store that lists at once")


def same(got: bytes, expected: bytes) -> Verdict:
    if got == expected:
        return passed(f"{len(got)} bytes, as written")
    return failed(f"{len(got)} bytes came that are not those that were written", BROKEN_REMEDY)


def exclusive(uri: str) -> Verdict:
    """Check that creating an existing file is refused."""
    if storage.create(uri, b"something else"):
        return warned("a write on the condition that nothing exists replaced an existing file", CONDITION_REMEDY)
    return passed("existing files are not replaced")


def parts(uri: str, data: bytes) -> Verdict:
    """Upload data in several parts, and read a range across the boundary of the first two."""
    storage.write_bytes(uri, data)
    if hashlib.sha256(storage.read_bytes(uri)).digest() != hashlib.sha256(data).digest():
        return failed("other bytes came back than went up", BROKEN_REMEDY)
    border = 10 * 1024**2
    if storage.read_range(uri, border - 100, 200) != data[border - 100 : border + 100]:
        return failed("a range over two parts is not what was written", BROKEN_REMEDY)
    return passed(f"{len(data) / 1024**2:.0f} MiB")


def clock(uri: str) -> Verdict:
    """Compare this machine's clock with the store's."""
    skew = storage.clock_skew_seconds(uri)
    if skew is None:
        return not_here("the store reports no time" if storage.is_s3(uri) else "a local folder")
    found = f"this machine's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the store's"
    if abs(skew) > FAIL_SKEW_SECONDS:
        return failed(found, CLOCK_REMEDY)
    return warned(found, CLOCK_REMEDY) if abs(skew) > WARN_SKEW_SECONDS else passed(found)


def deleted(folder: str) -> Verdict:
    storage.delete_folder(folder)
    return passed("nothing is left behind")


def smallest(files: list[storage.StoredFile]) -> storage.StoredFile:
    """Return the smallest file that is not empty."""
    full = [file for file in files if file.size_bytes > 0]
    if not full:
        raise NotFoundError("--data holds no file with any bytes; check the spelling")
    return min(full, key=lambda file: file.size_bytes)


def whole(file: storage.StoredFile) -> Verdict:
    return passed(f"{storage.name(file.uri)}: {len(storage.read_bytes(file.uri))} bytes")


def middle(file: storage.StoredFile) -> Verdict:
    begin = file.size_bytes // 3
    size = min(1000, file.size_bytes - begin)
    if storage.read_range(file.uri, begin, size) == storage.read_bytes(file.uri)[begin : begin + size]:
        return passed(f"{size} bytes from {begin}")
    return failed(f"a range of {file.uri} is not what the whole file holds", BROKEN_REMEDY)


def _files(uri: str) -> list[storage.StoredFile]:
    """List all files of a folder, or the single file of a CSV dataset."""
    if uri.lower().endswith(".csv"):
        return [storage.StoredFile(uri, len(storage.read_bytes(uri)))]
    return storage.list_files(uri)
