"""Small JSON files that hold their own SHA-256. Damage to them is detected when they are read. Runs anywhere.

Files from earlier versions hold no hash and are still accepted.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tpn_ray.errors import DamagedError

SEAL = "sha256"


def seal(content: dict[str, Any], *, indent: int | None = 1) -> bytes:
    """Encode a file's content together with its hash."""
    plain = json.loads(json.dumps(content))
    return json.dumps({**plain, SEAL: _hash(plain)}, indent=indent, ensure_ascii=False).encode()


def unseal(data: bytes | str, uri: str, remedy: str) -> dict[str, Any]:
    """Decode a file's content. Raises DamagedError, whose message ends with `remedy`, if it is not what was written."""
    try:
        content = json.loads(data)
    except ValueError as error:
        raise damaged(uri, f"it holds {len(data)} bytes that are not JSON: {error}", remedy) from error
    if not isinstance(content, dict):
        raise damaged(uri, f"it holds a JSON {type(content).__name__}, not an object", remedy)
    expected = content.pop(SEAL, None)
    if expected is not None and expected != _hash(content):
        raise damaged(uri, "its content does not match the SHA-256 recorded in it", remedy)
    return content


def damaged(uri: str, why: str, remedy: str) -> DamagedError:
    """Build the error for a file that is not what was written."""
    return DamagedError(f"{uri} is damaged: {why}. {remedy}")


def _hash(plain: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
