"""Removes secrets from text, and refuses them in URIs. Used for whatever is printed, logged, or stored. Runs anywhere.

Two kinds are recognized. Known secrets are the values of this process's secret-looking variables and the passwords in
its URIs; they are hidden wherever they appear, even percent-encoded, escaped, or in base64. Unknown secrets are
recognized by their shape or by what precedes them: credentials in URIs, headers, JSON, settings, and flags, and tokens
of well-known services.

No library does this: scanners such as detect-secrets find candidates in source files for people to review. They flag
file names and hashes for their entropy, miss signed URLs when the entropy check is off, and take two milliseconds per
line.
"""

from __future__ import annotations

import base64
import binascii
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

from tpn_ray.errors import ConfigError

HIDDEN = "***"

SHORTEST = 6
"""Length of the shortest known secret in characters; shorter ones would match in any text."""

# --- secrets that follow their names

_WORDS = (
    r"passw(?:or)?d|passphrase|secret(?:[_-]?(?:access)?[_-]?key)?|token|credentials?|webhook"
    r"|(?:api|access|account|auth|encryption|master|private|shared|signing|storage|wandb)[_-]?key"
)
_NAMED = rf"(?:{_WORDS})(?-i:(?![a-z]))(?![_-]?(?:id|path|file|mode|type|count|name|ttl)s?\b)[\w-]{{0,40}}"
"""The end of a name whose value is a secret, such as AWS_SECRET_ACCESS_KEY, SessionToken, or x-api-key."""
_QUOTED = r""""(?:\\.|[^"\\])*"?|'(?:\\.|[^'\\])*'?|(?P<quote>\\+["']).*?(?:(?P=quote)|$)"""
_BARE = r"""[^\s"']+"""
_PROSE = r"(?=[^\s\"']*[\d+/=_.~!@#$%^&*]|[^\s\"'][^\s\"']*(?-i:[A-Z])|[^\s\"']+(?:\s*$|[,;)}\]]))"
"""Rejects prose: after a colon and a space, a plain word before more words ("ExpiredToken: the provided token")."""

_ASSIGNED = re.compile(
    rf"(?P<name>{_NAMED}(?:\\*[\"'])?(?:\s{{0,8}}=\s{{0,8}}|\s{{0,8}}:(?=\S)|(?P<spaced>\s{{0,8}}:\s{{1,8}})))"
    rf"(?!\*\*\*|[\[{{(]\s*(?:\\*[\"'{{\[(]|$))(?:{_QUOTED}|(?(spaced){_PROSE}){_BARE})",
    re.IGNORECASE | re.MULTILINE,
)
_FLAG = re.compile(
    rf"(?P<name>(?<![\w-])--?[\w.-]{{0,40}}?{_NAMED}(?:[\"']?,\s*|\s+))(?!-)(?:{_QUOTED}|{_BARE})", re.IGNORECASE
)

# --- secrets in URIs

_PARAMETERS = (
    r"x-(?:amz|goog|ms|oss|cos)-[a-z-]+|awsaccesskeyid|googleaccessid|access_?key(?:_?id)?|signature|sig|sas|auth"
    r"|(?:access|auth|bearer|id|refresh|session|security|sas)?[_-]?token|pass|pwd|passw(?:or)?d|passphrase|secret"
    r"|api[_-]?key|(?:client|app)[_-]?secret|secret[_-]?(?:access[_-]?)?key|credentials?"
)
_IN_QUERY = re.compile(rf"((?:[?&;#]|%3F|%26)(?:amp;)?(?:{_PARAMETERS})(?:=|%3D))(?:(?!%26)[^&\s'\"])+", re.IGNORECASE)
_USER = re.compile(r"//[^/\s'\"]{0,1024}@")
_USER_WITH_SLASHES = re.compile(r"//[^/\s'\":@]{1,256}:(?!\d*(?:[/\s'\"]|$))[^\s'\"]{0,512}(?:\n[^\s'\"]{0,256})?@")
"""AWS secrets contain slashes, which people put into URIs unescaped. A host's colon, in contrast, precedes a number."""

# --- secrets with a known shape

_HEADER = re.compile(
    r"(?P<name>\b(?:(?:proxy-)?authorization|(?:set-)?cookie)(?:\\*[\"'])?\s*[:=,]\s*)"
    r"""(?:"[^"]*"?|'[^']*'?|(?P<quote>\\+["']).*?(?:(?P=quote)|$)|[^"'\n]+)""",
    re.IGNORECASE | re.MULTILINE,
)
_BEARER = re.compile(r"\b(Bearer\s+)(?=[A-Za-z]*[^A-Za-z\s]|\S{16})[\w.~+/=-]{6,}", re.IGNORECASE)
_BASIC = re.compile(r"\b(Basic\s+)([A-Za-z0-9+/_-]{4,}={0,2})", re.IGNORECASE)
_PRIVATE_KEY = re.compile(r"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY[A-Z ]*)-----.*?(?:-----END \1-----|\Z)", re.DOTALL)
_SHAPES = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{12,}(?:[\"']?\s*[:,;/]\s*[\"']?[A-Za-z0-9+/]{40})?"  # with an adjacent secret
    r"|(?:FwoG|IQoJ)[A-Za-z0-9+/=%]{12,}"  # AWS session tokens
    r"|hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[a-z]-[\w-]{10,}"
    r"|sk-[A-Za-z0-9_-]{20,}|AIza[\w-]{30,}|ya29\.[\w-]{20,}|dapi[0-9a-f]{32}|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{32,}"
    r"|eyJ[\w-]{8,2048}\.eyJ[\w-]*\.[\w-]*"  # JSON Web Tokens
    r")"
)
_WEBHOOK = re.compile(
    r"(https?://(?:hooks\.slack\.com/(?:services|workflows)|discord(?:app)?\.com/api/webhooks"
    r"|[\w.-]*webhook\.office\.com)/)[^\s'\"]+",
    re.IGNORECASE,
)

# --- variables

_SECRET_VARIABLE = re.compile(
    r"SECRET|PASSW(OR)?D|PASSPHRASE|CREDENTIAL|WEBHOOK|TOKEN(?!IZ)|COOKIE|APIKEY|AUTHORIZATION|PRIVATE_?KEY"
    r"|(^|_)(PG|DB|MY|SQL|REDIS|SMTP|FTP)?PASS$|._PWD$|(^|_)(KEYS?|SAS|PAT|DSN)(_|$)|_AUTH$|CONNECTION_STRING",
    re.IGNORECASE,
)
_PLAIN_VARIABLE = re.compile(
    r"_(PATHS?|FILES?|DIRS?|FOLDERS?|HOME|MODE|TYPE|NAME|URI|URL|ENDPOINT|HOST|PORT|USER(NAME)?|REGION|METHOD|ENABLED"
    r"|TTL|TIMEOUT|SECONDS|EXPIRATION|LENGTH|COUNT|LIMIT|SIZE)$",
    re.IGNORECASE,
)
"""Suffixes of variable names whose values are not the secret itself."""
_DATABASE = re.compile(
    r"(^|_)(DATABASE|DB|REDIS|MONGO\w*|POSTGRES\w*|MYSQL|AMQP|BROKER)_UR[IL]$|DSN$|CONNECTION_STRING", re.IGNORECASE
)
_PLAIN_URI = re.compile(r"[A-Za-z][\w+.-]*://[^@]*$")
_PLAIN_VALUES = frozenset(
    ("optional", "required", "disabled", "enabled", "default", "negotiate", "kerberos", "bearer", "password")
)
_PASSWORD_OF_URI = re.compile(
    r"[A-Za-z][\w+.-]*://([^/\s:@]*):(?!\d*(?:[/\s]|$))([^\s@]+)@|[A-Za-z][\w+.-]*://([^/\s:@]+)@"
)


def redacted(text: str) -> str:
    """Return a text without the secrets described above; a text without secrets is returned unchanged."""
    for secret in _known_secrets():
        text = _hide_known(text, secret)
    lowered = text.lower()
    for words, hide in _RULES:
        if any(word in lowered for word in words):
            text = hide(text)
    return text


def refuse_credentials(what: str, uri: str) -> None:
    """Raise ConfigError, without repeating them, if a storage URI holds credentials.

    The URI would be stored in recipes, records, and MLflow.
    """
    authority = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://[^/]*@|[A-Za-z][A-Za-z0-9+.-]*://[^/:@]+:(?!\d*(?:/|$)).*@", uri)
    if authority or _IN_QUERY.search(uri):
        raise ConfigError(
            f"{what} {redacted(uri)!r} holds credentials; leave them out and set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, where the nodes start"
        )


def _hide_value(found: re.Match[str]) -> str:
    """Hide the value; keep the name and the quotes around the value."""
    value = found[0][len(found["name"]) :]
    quote = re.match(r"""\\*["']""", value)
    return f"{found['name']}{quote[0]}{HIDDEN}{quote[0]}" if quote else found["name"] + HIDDEN


def _hide_basic(found: re.Match[str]) -> str:
    """Hide only what decodes to user:password, since "basic" is also an ordinary word."""
    try:
        plain = base64.b64decode(found[2].translate(_STANDARD) + "===")
    except binascii.Error:
        return found[0]
    return found[1] + HIDDEN if b":" in plain else found[0]


_RULES: tuple[tuple[tuple[str, ...], Callable[[str], str]], ...] = (
    (("private key",), lambda text: _PRIVATE_KEY.sub(rf"-----BEGIN \g<1>-----{HIDDEN}-----END \g<1>-----", text)),
    (("//",), lambda text: _USER.sub(f"//{HIDDEN}@", _USER_WITH_SLASHES.sub(f"//{HIDDEN}@", text))),
    (("//",), lambda text: _WEBHOOK.sub(rf"\g<1>{HIDDEN}", text)),
    (("=", "%3d"), lambda text: _IN_QUERY.sub(rf"\g<1>{HIDDEN}", text)),
    (("authorization", "cookie"), lambda text: _HEADER.sub(_hide_value, text)),
    (("bearer",), lambda text: _BEARER.sub(rf"\g<1>{HIDDEN}", text)),
    (("basic",), lambda text: _BASIC.sub(_hide_basic, text)),
    (
        ("passw", "passphrase", "secret", "token", "credential", "webhook", "key"),
        lambda text: _FLAG.sub(_hide_value, _ASSIGNED.sub(_hide_value, text)),
    ),
    (("",), lambda text: _SHAPES.sub(HIDDEN, text)),
)
"""Rules in order of application: each is tried if the lowercased text holds one of its words; the last always is."""


# --- secrets that this process knows


def _known_secrets() -> list[str]:
    """List the known secrets, longest first so that none is cut by another that is a part of it."""
    secrets = set[str]()
    for name, value in (*os.environ.items(), *(("", argument) for argument in sys.argv[1:])):
        if _is_secret(name, value):
            secrets.add(value)
        if "://" in value:
            secrets.update(_passwords(value))
    return sorted(secrets, key=lambda secret: (-len(secret), secret))


@functools.lru_cache(maxsize=1024)
def _is_secret(name: str, value: str) -> bool:
    """Return whether the value of a variable must be hidden, judging by its name and the form of its value."""
    if len(value) < SHORTEST:
        return False
    if _DATABASE.search(name):
        return not _PLAIN_URI.match(value)
    if not _SECRET_VARIABLE.search(name) or _PLAIN_VARIABLE.search(name) or value.lower() in _PLAIN_VALUES:
        return False
    return not _is_path(value)


def _is_path(value: str) -> bool:
    """Return whether the value is a path in an existing folder: keys, too, can begin with a slash."""
    if not value.startswith("/"):
        return False
    path = Path(value)
    return path.exists() or (path.parent.name != "" and path.parent.is_dir())


def _passwords(text: str) -> Iterator[str]:
    for user, password, token in _PASSWORD_OF_URI.findall(text):
        secret = password or token
        if len(secret) >= SHORTEST:
            yield secret
            yield unquote(secret)
            if password:
                yield f"{unquote(user)}:{unquote(password)}"


def _hide_known(text: str, secret: str) -> str:
    text = _any_spelling(secret).sub(HIDDEN, text)
    standard = text.translate(_STANDARD)
    forms = [form for form in _base64_forms(secret) if form in standard]

    def hide(run: re.Match[str]) -> str:
        return HIDDEN if any(form in run[0].translate(_STANDARD) for form in forms) else run[0]

    return _BASE64_RUN.sub(hide, text) if forms else text


@functools.lru_cache(maxsize=256)
def _any_spelling(secret: str) -> re.Pattern[str]:
    return re.compile("".join(map(_spellings, secret)))


def _spellings(character: str) -> str:
    """Build a pattern for one character of a secret: as it is, percent-encoded, or escaped."""
    if character.isascii() and character.isalnum():
        return character
    percent = "".join(f"%(?:25)?(?i:{byte:02x})" for byte in character.encode())
    others = {" ": "|[+]", "\n": r"|\\+n", "\t": r"|\\+t", "\r": r"|\\+r"}.get(character, "")
    code = "" if character.isascii() and character not in "\\&<>'\"" else rf"|\\+u(?i:{ord(character):04x})"
    return rf"(?:{percent}|\\*{re.escape(character)}{others}{code})"


_BASE64_RUN = re.compile(r"[A-Za-z0-9+/=_-]+")
_STANDARD = str.maketrans("-_", "+/")


@functools.lru_cache(maxsize=256)
def _base64_forms(secret: str) -> tuple[str, ...]:
    """Return the base64 forms of a secret inside a longer text, such as user:password.

    There is one form for each of the three offsets where it can start, without the characters at both ends that depend
    on neighboring bytes.
    """
    plain = secret.encode(errors="surrogateescape")
    padded = [base64.b64encode(b"\0" * before + plain).decode() for before in range(3)]
    forms = (form[(before * 8 + 5) // 6 : (before + len(plain)) * 8 // 6] for before, form in enumerate(padded))
    return tuple(form for form in forms if len(form) >= SHORTEST)
