"""Secrets taken out of texts that are printed, logged or stored, and refused where they would be. Runs anywhere."""

from __future__ import annotations

import os
import re

from tpn_ray.errors import ConfigError

HIDDEN = "***"
_PARAMETERS = (
    "access_key|access_key_id|secret_key|secret_access_key|session_token|awsaccesskeyid|x-amz-[a-z-]+|signature|sig|"
    "token|access_token|password|passwd|api_key|secret"
)
_IN_QUERY = re.compile(rf"([?&;](?:{_PARAMETERS})=)[^&\s'\"]+", re.IGNORECASE)
_USER = re.compile(r"//[^/\s'\"]*@")
_USER_WITH_SLASHES = re.compile(r"//[^/\s'\":@]+:(?!\d*(?:[/\s'\"]|$))[^\s'\"]*@")
"""AWS's secrets hold slashes, and people write them into URIs as they are. What follows a host's colon is a number."""

_NAMES = re.compile(r"SECRET|PASSWORD|TOKEN|API_KEY|ACCESS_KEY")
_NO_SECRETS = re.compile(r"(_PATH|_FILE|_URI|_URL|_MODE)$")
_SHORTEST = 6
"""Shorter values of such variables are found in any text."""


def redacted(text: str) -> str:
    """A text without users and passwords in URIs, signatures in queries, and values of this process's secret
    variables."""
    for value in _secret_values():
        text = text.replace(value, HIDDEN)
    text = _USER.sub(f"//{HIDDEN}@", _USER_WITH_SLASHES.sub(f"//{HIDDEN}@", text))
    return _IN_QUERY.sub(rf"\g<1>{HIDDEN}", text)


def refuse_credentials(what: str, uri: str) -> None:
    """Raises ConfigError, which does not repeat them, for a URI of storage with credentials in it: it would be stored
    in recipes, records and MLflow."""
    authority = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://[^/]*@|[A-Za-z][A-Za-z0-9+.-]*://[^/:@]+:(?!\d*(?:/|$)).*@", uri)
    if authority or _IN_QUERY.search(uri):
        raise ConfigError(
            f"{what} {redacted(uri)!r} holds credentials; leave them out and set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, where the nodes start"
        )


def _secret_values() -> list[str]:
    """Longest first, so that none is cut by another that is a part of it."""
    values = {
        value
        for name, value in os.environ.items()
        if _NAMES.search(name) and not _NO_SECRETS.search(name) and len(value) >= _SHORTEST
    }
    return sorted(values, key=lambda value: (-len(value), value))
