"""Checks and measures the project on one device, section by section. Runs here; torch and numpy suffice.

Every section runs in a process of its own, under a limit of time. One that fails or overruns is a failed check, and the
next goes on. Results are written after every check, so that whatever ends the run leaves what was found until then.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIMITS_SECONDS = {
    "environment": 40,
    "parity": 80,
    "convolutions": 50,
    "bits": 110,
    "waits": 60,
    "training": 220,
    "inference": 90,
    "develop": 40,
    "workers": 60,
    "decoding": 60,
}
"""The sections in the order in which they run, and the longest time that each may take on a GPU."""

SMALL_SECONDS = 120
"""Longest time of a section with `small`."""


@dataclass(frozen=True)
class Check:
    """One result."""

    section: str
    name: str
    value: str
    """What was found, with its unit."""

    limit: str = ""
    """What was to be reached; empty for a mere figure."""

    passed: bool | None = None
    """Whether it was reached; None for a mere figure."""


def run(sections: Sequence[str], device: str, out: Path, *, small: bool) -> Iterator[Check]:
    """Run the sections, yield their checks as they come, and write all to `out` as JSON."""
    checks: list[Check] = []
    out.parent.mkdir(parents=True, exist_ok=True)
    for section in sections:
        begin = time.monotonic()
        for check in _section(section, device, out.with_suffix(f".{section}.jsonl"), small=small):
            checks.append(check)
            _write(out, checks, device, small=small)
            yield check
        spent = Check(section, "seconds", f"{time.monotonic() - begin:.1f}")
        checks.append(spent)
        _write(out, checks, device, small=small)
        yield spent


def _section(section: str, device: str, results: Path, *, small: bool) -> Iterator[Check]:
    """Yield the checks of a section; a failed one more if its process does not end well."""
    results.write_text("")
    command = [sys.executable, "-m", "benchmarks.device_sections", section, device, str(results), str(int(small))]
    limit = SMALL_SECONDS if small else LIMITS_SECONDS[section]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said, _ = process.communicate(timeout=limit)
        problem = "" if process.returncode == 0 else f"ended with status {process.returncode}: {_last_line(said)}"
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        problem = f"took more than {limit} s"
    for line in results.read_text().splitlines():
        yield Check(**json.loads(line))
    results.unlink()
    if problem:
        yield Check(section, "runs to its end", problem, "without an error", passed=False)


def _last_line(said: str) -> str:
    return next((line for line in reversed(said.splitlines()) if line.strip()), "it said nothing")[:300]


def _write(out: Path, checks: Sequence[Check], device: str, *, small: bool) -> None:
    content: dict[str, Any] = {
        "device": device,
        "small": small,
        "failed": [f"{one.section}: {one.name}" for one in checks if one.passed is False],
        "checks": [vars(one) for one in checks],
    }
    out.write_text(json.dumps(content, indent=1) + "\n")


def as_line(check: Check) -> str:
    """Format a check as one line of a table."""
    mark = {True: "ok  ", False: "FAIL", None: "    "}[check.passed]
    wanted = f"  ({check.limit})" if check.limit else ""
    return f"{mark} {check.section:13} {check.name:52} {check.value}{wanted}"
