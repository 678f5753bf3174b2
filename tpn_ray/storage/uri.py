"""URIs of files and folders: one spelling, their parts, and their parents. Runs anywhere."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tpn_ray.errors import ConfigError
from tpn_ray.redaction import refuse_credentials

S3 = "s3://"


def absolute(uri: str | os.PathLike[str]) -> str:
    """Return the canonical spelling of a URI: s3://bucket/key, or an absolute local path.

    Raises ConfigError for other schemes, and for credentials in a URI.
    """
    text = os.fspath(uri)
    if "://" in text and ("@" in text or "=" in text):
        refuse_credentials("the URI", text)
    if is_s3(text):
        bucket, key = bucket_and_key(text)
        if not bucket:
            raise ConfigError(f"no bucket in {text!r}; write s3://bucket/path")
        return f"{S3}{bucket}/{key.strip('/')}".rstrip("/")
    if text.startswith("file:"):
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise ConfigError(f"{text!r} is not a local file; write file:///absolute/path")
        return os.path.normpath(unquote(parts.path))
    if scheme := re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise ConfigError(f"storage of the type {scheme[0]} is not supported: {text!r}; use s3:// or a local path")
    if not text:
        raise ConfigError("an empty path was given; write s3://bucket/path or a local path")
    return str(Path(text).expanduser().absolute())


def is_absolute(uri: str) -> bool:
    """Return whether `uri` is absolute rather than relative to some folder."""
    return "://" in uri or uri.startswith(("file:", "/", "~"))


def is_s3(uri: str) -> bool:
    """Return whether the URI names an object store rather than this machine's disk."""
    return uri.startswith(S3)


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Split the URI of an object."""
    bucket, _, key = uri.removeprefix(S3).partition("/")
    return bucket, key


def join(uri: str, *parts: str) -> str:
    """Append path parts to `uri`."""
    return "/".join([absolute(uri).rstrip("/"), *(part.strip("/") for part in parts)])


def name(uri: str) -> str:
    """Return the last part of the path: the file's own name."""
    return absolute(uri).rpartition("/")[2]


def parent(uri: str) -> str:
    """Return the parent folder. Raises ConfigError for a bucket, which has none."""
    folder = absolute(uri).rpartition("/")[0]
    if folder == "s3:/":
        raise ConfigError(f"{uri!r} is a bucket: it has no folder above it")
    return folder or "/"
