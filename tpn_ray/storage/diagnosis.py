"""Diagnoses storage failures: whether they are transient, and what the user can do. Runs anywhere."""

from __future__ import annotations

import errno
import re
import time
from email.utils import parsedate_to_datetime

from tpn_ray.errors import NotFoundError, StorageError, StorageRefusedError
from tpn_ray.storage import s3
from tpn_ray.storage.s3 import NO_CREDENTIALS, UNREACHABLE, Answer, RequestError, first_line
from tpn_ray.storage.uri import bucket_and_key, is_s3

_SAID = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))? during \w+ operation")
"""pyarrow's text for every failed request: the SDK's code and, if it knows none, the HTTP status."""
_CURL = re.compile(r"curlCode: \d+, ([^;\n]+)")
"""The HTTP library's text in pyarrow's message: "curlCode: 7, Couldn't connect to server; Details"."""
_PASSING = frozenset(
    {
        *("SLOW_DOWN", "THROTTLING", "SERVICE_UNAVAILABLE", "INTERNAL_FAILURE", "REQUEST_TIMEOUT", "REQUEST_EXPIRED"),
        *("SlowDown", "ServiceUnavailable", "InternalError", "CredentialRetrievalError", UNREACHABLE),
    }
)
"""Codes of the SDK, and of S3 and boto3, for transient failures."""

_DENIED = "AccessDenied: these credentials may not do this in bucket {bucket!r}; check the policy and AWS_PROFILE"
_ENDED = "{code}: the session has ended; renew AWS_SESSION_TOKEN and the two keys with it"
_ELSEWHERE = "{code}: the bucket is in another region; set AWS_REGION to it"
REMEDIES = {
    "NoSuchBucket": "{code}: there is no bucket {bucket!r}; create it, or check the name and AWS_ENDPOINT_URL",
    "InvalidAccessKeyId": "{code}: the store does not know the key; check AWS_ACCESS_KEY_ID (or AWS_PROFILE)",
    "SignatureDoesNotMatch": "{code}: the secret does not match the key; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": _ENDED,
    "InvalidToken": _ENDED,
    "RequestTimeTooSkewed": "{code}: this machine's clock and the store's differ; set it by NTP",
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "403": _DENIED,
    NO_CREDENTIALS: "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    UNREACHABLE: "no answer ({said}); check AWS_ENDPOINT_URL and that the store is running",
    "AuthorizationHeaderMalformed": _ELSEWHERE,
    "PermanentRedirect": _ELSEWHERE,
    "301": _ELSEWHERE,
    "": "{said}",
}
"""Remedies by S3's error code. They never hold a secret: only codes, names of variables, and the bucket."""
REFUSALS = ("AccessDenied", "403", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch", NO_CREDENTIALS)
"""Codes for failures that only a person can fix."""


def heard(error: Exception) -> Answer:
    """Return what is known of the answer to a failed request."""
    if isinstance(error, RequestError):
        return error.answer
    text = str(error)
    said = _SAID.search(text)
    if said is None:
        return Answer(said=first_line(text))
    if said[1] == "NETWORK_CONNECTION":  # everything from curl: refused, unknown host, timeout, reset, partial answer
        reason = _CURL.search(text)
        return Answer(UNREACHABLE, reason[1] if reason else first_line(text))
    return Answer(said[1], first_line(text), int(said[2] or 0))


def may_pass(answer: Answer) -> bool:
    """Return whether the same request may succeed later: no answer came, or the store is temporarily unavailable."""
    return answer.code in _PASSING or answer.status >= 500 or answer.status in (200, 408, 429)  # 200: no error


def explain(uri: str, verb: str, error: Exception, attempts: int = 1, seconds: float = 0.0) -> StorageError:
    """Build the error for a failed operation: what, where, what the store said, and what to do."""
    if not is_s3(uri):
        return _explain_local(uri, verb, error)
    answer = heard(error)
    if not (answer.code == UNREACHABLE or isinstance(error, RequestError)):
        answer = _ask_why(uri, verb)
    if isinstance(error, FileNotFoundError) and (not answer.code or may_pass(answer)):
        return nothing_there(uri)  # the bucket exists, or nobody can say just now that it does not
    if not answer.code:  # the store answers the question, so only this object is affected
        answer = Answer(said=first_line(error))
    error_type = NotFoundError if answer.code in ("NoSuchBucket", "NoSuchKey", "404") else StorageError
    if answer.code in REFUSALS:
        error_type = StorageRefusedError
    tries = f" (tried {attempts} times in {seconds:.0f} s)" if attempts > 1 else ""
    return error_type(f"cannot {verb} {uri} at {s3.store()}{tries}: {_remedy(answer, uri)}")


def nothing_there(uri: str) -> NotFoundError:
    """Build the error for a file or folder that does not exist."""
    place = f" at {s3.store()}" if is_s3(uri) else ""
    return NotFoundError(f"nothing at {uri}{place}; check the spelling")


def clock_skew_seconds(uri: str) -> float | None:
    """Return how far this machine's clock is ahead of the store's, by the Date of an answer; None if it has none.

    Raises StorageError if the store does not answer; a refusal counts as an answer.
    """
    if not is_s3(uri):
        return None
    before = time.time()
    answer = s3.ask("head_bucket", uri)
    if not answer.status:
        raise StorageError(f"cannot ask {s3.store()} for its time: {_remedy(answer, uri)}")
    middle = (before + time.time()) / 2
    return middle - parsedate_to_datetime(answer.date).timestamp() if answer.date else None


def _explain_local(uri: str, verb: str, error: Exception) -> StorageError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return nothing_there(uri)
    if isinstance(error, PermissionError):
        return StorageRefusedError(f"cannot {verb} {uri}: no permission; check the owner and the mode of the folder")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return StorageRefusedError(f"cannot {verb} {uri}: the disk is full; free some space or choose another folder")
    return StorageError(f"cannot {verb} {uri}: {first_line(error)}")


def _remedy(answer: Answer, uri: str) -> str:
    sentence = REMEDIES.get(answer.code, "{code}: {said}")
    return sentence.format(code=answer.code, said=answer.said, bucket=bucket_and_key(uri)[0])


def _ask_why(uri: str, verb: str) -> Answer:
    """Ask the store once more with boto3, which reports its error code; there is none if the request now succeeds."""
    _, key = bucket_and_key(uri)
    if verb == "read":
        return s3.ask("get_object", uri, Key=key, Range="bytes=0-0")
    if verb != "write":
        return s3.ask("list_objects_v2", uri, Prefix=key, MaxKeys=1)
    answer = s3.ask("put_object", uri, Key=f"{key}.write-check", Body=b"")
    return answer if answer.code else s3.ask("delete_object", uri, Key=f"{key}.write-check")
