"""Finds the file of published weights, wherever it is. Runs anywhere.

    /path or file:///path              read where it is
    s3://bucket/key                    object storage
    https://host/file.pth#sha256=HEX   the web, if the content has this hash; instead of the fragment, a name such as
                                       resnet50-0676ba61.pth may carry the hash's beginning, as those of torch's hub do
    hf://owner/name[@revision][/file]  Hugging Face; the file is model.safetensors unless it is given

What comes over a network is kept on the node, so that its workers fetch it once.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from tpn_ray import storage
from tpn_ray.errors import CheckpointError, ConfigError, NotFoundError, StorageError
from tpn_ray.redaction import redacted
from tpn_ray.storage.retry import next_wait

HTTPS, HUB = "https://", "hf://"
HUB_FILE = "model.safetensors"
MAX_BYTES = 16 * 1024**3
PIECE_BYTES = 1024**2
ANSWER_SECONDS = 30.0
"""Longest silence of a server."""
LOCK_SECONDS = 3600.0
"""Longest wait for another process of the node that fetches the same file."""
SHORTEST_HASH = 8
"""Hexadecimal digits of a hash in a file's name; torch's hub uses as many."""


class Hub(NamedTuple):
    """A file on Hugging Face."""

    repository: str
    revision: str | None
    file: str


def cache() -> Path:
    """Return the folder for fetched weights: TPN_RAY_WEIGHTS_CACHE, or one in the user's cache."""
    return Path(os.environ.get("TPN_RAY_WEIGHTS_CACHE") or "~/.cache/tpn_ray/weights").expanduser()


def check_source(uri: str) -> None:
    """Raise an error within seconds if weights cannot be there. Files on a disk are not looked for: they may exist only
    on the workers' nodes."""
    if uri.startswith(HTTPS):
        expected_hash(uri)
    elif uri.startswith(HUB):
        hub_file(uri)
    elif "://" in uri and not storage.is_s3(uri) and not uri.startswith("file://"):
        raise ConfigError(
            f"weights={redacted(uri)!r}: write a path, or a URI that begins with s3://, https://, or hf://"
        )
    elif storage.is_s3(uri):
        storage.check_readable(uri)


def local_file(uri: str) -> Path:
    """Return the file on this node, which is fetched if need be.

    Raises ConfigError for an invalid source, NotFoundError, StorageError for one that does not answer, and
    CheckpointError for a content with another hash.
    """
    if uri.startswith(HUB):
        return _from_hub(uri)
    if uri.startswith(HTTPS):
        expected = expected_hash(uri)
        return _kept(uri, lambda target: _patiently(uri, lambda: _from_web(uri, expected, target)))
    absolute = storage.absolute(uri)
    if storage.is_s3(absolute):
        return _kept(
            f"{absolute} {storage.stamp(absolute)}",
            lambda target: storage.download(absolute, target, max_bytes=MAX_BYTES),
        )
    if not storage.exists(absolute):
        raise NotFoundError(f"{absolute} does not exist")
    return Path(absolute)


def expected_hash(uri: str) -> str:
    """Return the (beginning of the) SHA-256 that the content of an https:// URI must have, in hexadecimal digits."""
    parts = urlsplit(uri)
    given = re.fullmatch(r"sha256=([0-9a-f]{64})", parts.fragment)
    named = re.search(rf"-([0-9a-f]{{{SHORTEST_HASH},64}})\.\w+$", parts.path)
    if parts.fragment and not given:
        raise ConfigError(f"weights={redacted(uri)!r}: after the # must be sha256= and 64 hexadecimal digits")
    if not given and not named:
        raise ConfigError(
            f"weights={redacted(uri)!r} has no hash: append #sha256= and the file's SHA-256, so that it is certain "
            "what is loaded"
        )
    return given[1] if given else named[1] if named else ""


def hub_file(uri: str) -> Hub:
    """Parse a URI of Hugging Face."""
    found = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/(.+))?", uri)
    if not found:
        raise ConfigError(f"weights={redacted(uri)!r} is not written as hf://owner/name[@revision][/file]")
    return Hub(found[1], found[2], found[3] or HUB_FILE)


def _kept(key: str, fetch: Callable[[Path], None]) -> Path:
    """Return the file of a key, made by `fetch` unless this node has it."""
    import filelock

    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / hashlib.sha256(key.encode()).hexdigest()
    try:
        with filelock.FileLock(f"{kept}.lock", timeout=LOCK_SECONDS):
            if not kept.exists():
                coming = kept.with_suffix(".part")
                fetch(coming)
                coming.replace(kept)
    except filelock.Timeout:
        raise StorageError(f"another process has been fetching {kept} for {LOCK_SECONDS:g} s") from None
    return kept


def _from_web(uri: str, expected: str, target: Path) -> None:
    found = hashlib.sha256()
    request = urllib.request.Request(uri.partition("#")[0], headers={"User-Agent": "tpn_ray"})
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer, target.open("wb") as file:
        while piece := answer.read(PIECE_BYTES):
            found.update(piece)
            file.write(piece)
        if answer.length:
            raise http.client.IncompleteRead(b"", answer.length)
    if not found.hexdigest().startswith(expected):
        target.unlink()
        raise CheckpointError(
            f"{redacted(uri)} has the SHA-256 {found.hexdigest()}, not {expected}: it is another file than the one "
            "that was meant"
        )


def _patiently(uri: str, act: Callable[[], None]) -> None:
    """Repeat a request while its failure may pass, for as long as storage is waited for."""
    begin, attempts = time.monotonic(), 0
    while True:
        attempts += 1
        try:
            return act()
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            status = error.code if isinstance(error, urllib.error.HTTPError) else 0
            if status in (404, 410):
                raise NotFoundError(f"{redacted(uri)} does not exist") from error
            spent = time.monotonic() - begin
            wait = next_wait(attempts, spent, storage.patience_seconds(), random.random())
            if wait is None or (status and status < 500 and status != 429):
                raise StorageError(f"cannot read {redacted(uri)} ({attempts} attempts): {error}") from error
            time.sleep(wait)


def _from_hub(uri: str) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    repository, revision, file = hub_file(uri)
    try:
        return Path(huggingface_hub.hf_hub_download(repository, file, revision=revision))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        said = str(error).strip().splitlines()[-1]
        raise NotFoundError(f"{uri}: Hugging Face has no such file, or HF_TOKEN may not read it: {said}") from error
    except (OSError, errors.HfHubHTTPError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StorageError(f"cannot read {uri} from Hugging Face: {said}") from error
