"""What trained a run: code, packages, machines, and data, as its folder keeps them for `jobs/replay.py`. On the driver.

Every attempt leaves its origin in the run's folder, under the hash of its content, so that equal ones are one file.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tpn_ray import storage
from tpn_ray.errors import NotFoundError
from tpn_ray.lease import Token
from tpn_ray.sealed import damaged, seal, unseal
from tpn_ray.training.machines import Machines

ORIGINS = "origins"
PACKAGES = ("av", "numpy", "ray", "torch")
"""Packages whose version may change the bits of a run: they decode, draw, share, and compute."""
_REMEDY = "Put it back from a copy, or delete it: only jobs/replay.py needs it"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What one attempt of a run was trained with."""

    code_sha256: str
    """Digest of the package's source files."""
    commit: str = ""
    """Git commit of the clone that it ran in; empty if it ran in none."""
    python: str
    packages: dict[str, str]
    machines: Machines
    data: str = ""
    """Absolute place of the dataset; empty if the caller did not say."""
    start_from: str = ""
    """Checkpoint of another run whose state it started with."""
    start_epoch: int = 0


_ORIGIN = TypeAdapter(Origin)


def current(machines: Machines, data: str = "", start_from: str = "", start_epoch: int = 0) -> Origin:
    """Return the origin of what this process trains."""
    return Origin(
        code_sha256=code_sha256(),
        commit=commit(),
        python=platform.python_version(),
        packages={name: metadata.version(name) for name in PACKAGES},
        machines=machines,
        data=data,
        start_from=start_from,
        start_epoch=start_epoch,
    )


def write(run_uri: str, origin: Origin, token: Token | None = None) -> None:
    """Add an origin to those of a run."""
    content = seal(_ORIGIN.dump_python(origin, mode="json"))
    if token:
        token.check()
    storage.write_bytes(storage.join(run_uri, ORIGINS, f"{hashlib.sha256(content).hexdigest()[:16]}.json"), content)


def read(run_uri: str) -> list[Origin]:
    """Return the origins of a run, in no order; none if it is older than they are. Raises DamagedError."""
    try:
        files = storage.list_files(storage.join(run_uri, ORIGINS), suffixes=(".json",))
    except NotFoundError:
        return []
    return [_read(file.uri) for file in files if not storage.name(file.uri).startswith(".")]


def _read(uri: str) -> Origin:
    try:
        return _ORIGIN.validate_python(unseal(storage.read_bytes(uri), uri, _REMEDY))
    except ValidationError as error:
        raise damaged(uri, f"it is not what a run was trained with: {error.errors()[0]['msg']}", _REMEDY) from error


def differences(origins: Sequence[Origin], now: Origin, *, any_workers: bool) -> list[str]:
    """Return, in words, what differs between what trained a run and what would train it now, as far as it may change
    bits. With `any_workers`, their number does not."""
    then, mine = [_comparable(one, any_workers) for one in origins], _comparable(now, any_workers)
    found = []
    for name, value in mine.items():
        values = sorted({one[name] for one in then})
        if values != [value]:
            found.append(f"{name}: {' and '.join(values)} then, {value} now")
    return found


def _comparable(origin: Origin, any_workers: bool) -> dict[str, str]:
    packages = {name: origin.packages.get(name, "an unknown version") for name in PACKAGES}
    workers = _workers(origin, any_workers)
    return {"code": origin.code_sha256[:12], "Python": origin.python, **packages, "workers": workers}


def _workers(origin: Origin, any_number: bool) -> str:
    machines = origin.machines
    each = "a GPU each" if machines.per_worker.gpus else f"{machines.per_worker.threads} CPU threads each"
    count = f"{machines.min_workers} to {machines.workers}" if machines.min_workers else f"{machines.workers}"
    return each if any_number else f"{count} with {each}"


def code_sha256() -> str:
    """Return a digest of the package's source files."""
    package, digest = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def commit() -> str:
    """Return the commit, if the code runs in a clone (`ray job submit` sends none)."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            check=False,
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
