"""An S3-compatible store: the clients of pyarrow and boto3, and the store's settings in the environment. Runs anywhere.

Data moves through pyarrow. boto3 does what pyarrow cannot: it writes an object on the condition that none exists, reads
the store's clock, and reports what was wrong with a request (pyarrow's HEAD requests carry no error code).
"""

from __future__ import annotations

import contextlib
import os
import time
from functools import lru_cache
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs as pafs

from tpn_ray.errors import ConfigError
from tpn_ray.redaction import redacted
from tpn_ray.storage.uri import bucket_and_key

CONNECT_SECONDS = 3.0
REQUEST_SECONDS = 5.0  # without a byte
CONFLICT_TRIES, CONFLICT_SECONDS = 10, 0.5
"""Number of tries while another writer is working on the same object, and the wait between them."""
UNREACHABLE, NO_CREDENTIALS = "Unreachable", "NoCredentials"
"""Codes beyond S3's own: for requests that got no complete answer, and for requests that were never sent."""

_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")


class Account(NamedTuple):
    """Settings of a client: a test or a notebook that changes a variable gets a new client."""

    endpoint: str | None
    region: str | None
    credentials: tuple[str | None, ...]


class Answer(NamedTuple):
    """The outcome of one request."""

    code: str = ""  # the error's code; empty for a request that succeeded
    said: str = ""  # message of the store or the client, in one line
    status: int = 0  # HTTP status; 0 if unknown
    date: str = ""  # by the store's clock


class RequestError(OSError):
    """A failed request and its outcome."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.said)
        self.answer = answer


def endpoint() -> str | None:
    """Return the S3-compatible store that the environment names; None means Amazon S3."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    if url and urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"AWS_ENDPOINT_URL is {redacted(url)!r}; it must begin with http:// or https://")
    return url


def store() -> str:
    """Return the store's name for messages."""
    return redacted(endpoint() or "Amazon S3")


def account(uri: str) -> Account:
    """Return the environment's settings for the store of a URI."""
    url = endpoint()
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region and url:
        region = "us-east-1"  # ignored by compatible stores; without it the SDK waits for the EC2 metadata service
    with contextlib.suppress(OSError, pa.ArrowException):  # not cached: Amazon may only be unavailable for the moment
        region = region or _region_of_aws_bucket(bucket_and_key(uri)[0])
    return Account(url, region, tuple(os.environ.get(variable) for variable in _CREDENTIALS))


def ask(operation: str, uri: str, **arguments: Any) -> Answer:
    """Send one request with boto3 to the bucket of a URI."""
    from botocore import exceptions

    try:
        response = getattr(_client(account(uri)), operation)(Bucket=bucket_and_key(uri)[0], **arguments)
    except exceptions.ClientError as error:
        response = error.response
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
        return Answer(NO_CREDENTIALS, first_line(error))
    except (exceptions.ConnectionError, exceptions.HTTPClientError) as error:
        return Answer(UNREACHABLE, type(error).__name__)
    except exceptions.BotoCoreError as error:
        return Answer(type(error).__name__, first_line(error))
    problem, about = response.get("Error"), response["ResponseMetadata"]
    code, said = (problem.get("Code", "error"), first_line(problem.get("Message", ""))) if problem else ("", "")
    return Answer(code, said, about["HTTPStatusCode"], about["HTTPHeaders"].get("date", ""))


def create(uri: str, data: bytes) -> bool:
    """Put an object on the condition that none exists; return False if one does. Raises RequestError."""
    for _ in range(CONFLICT_TRIES):
        answer = ask("put_object", uri, Key=bucket_and_key(uri)[1], Body=data, IfNoneMatch="*")
        if not answer.code:
            return True
        if answer.status == HTTPStatus.PRECONDITION_FAILED:
            return False
        if answer.status != HTTPStatus.CONFLICT:
            break
        time.sleep(CONFLICT_SECONDS)
    raise RequestError(answer)


def put(uri: str, data: bytes) -> None:
    """Put an object in one request, without pyarrow's threads. Raises RequestError."""
    answer = ask("put_object", uri, Key=bucket_and_key(uri)[1], Body=data)
    if answer.code:
        raise RequestError(answer)


def first_line(text: object) -> str:
    """Return the first line of a text, for a one-line message."""
    return next(iter(str(text).strip().splitlines()), "no reason given")[:300]


@lru_cache(maxsize=256)
def _region_of_aws_bucket(bucket: str) -> str:
    region: str = pafs.resolve_s3_region(bucket)
    return region


@lru_cache(maxsize=16)
def filesystem(account: Account) -> pafs.FileSystem:
    """Return a pyarrow filesystem that does not retry requests."""
    url = urlsplit(account.endpoint or "https:")
    return pafs.S3FileSystem(
        region=account.region,
        endpoint_override=url.netloc or None,
        scheme=url.scheme,
        connect_timeout=CONNECT_SECONDS,
        request_timeout=REQUEST_SECONDS,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=1),
        allow_delayed_open=True,  # makes a small object one PUT instead of a multipart upload
    )


@lru_cache(maxsize=256)
def opened(uri: str, account: Account) -> pa.NativeFile:
    """Open an object that does not change, once per process, because opening requests its size."""
    return filesystem(account).open_input_file("/".join(bucket_and_key(uri)))


@lru_cache(maxsize=16)
def _client(account: Account) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=REQUEST_SECONDS,
        retries={"total_max_attempts": 1},
        s3={"addressing_style": "path" if account.endpoint else "auto"},
    )
    # A session of its own: boto3's default session keeps the first credentials that it finds.
    return boto3.Session().client("s3", endpoint_url=account.endpoint, region_name=account.region, config=config)
