"""The result of a check, and how a check is run: within a bounded time, never with a traceback. Runs anywhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from tpn_ray.errors import TpnRayError
from tpn_ray.redaction import redacted

PASS, WARN, FAIL, NOT_HERE = "pass", "warn", "fail", "not here"
MOST_CHARACTERS = 400
"""Maximum length of the text shown for an error."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How one check ended."""

    result: str
    """PASS, WARN, FAIL, or NOT_HERE if there is nothing to check."""
    found: str
    remedy: str = ""
    """What to do; every failed check has a remedy."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One row of the table."""

    check: str
    where: str
    """The node, the URI, or the server that was examined."""
    result: str
    found: str
    remedy: str = ""


def passed(found: str) -> Verdict:
    return Verdict(result=PASS, found=found)


def warned(found: str, remedy: str) -> Verdict:
    return Verdict(result=WARN, found=found, remedy=remedy)


def failed(found: str, remedy: str) -> Verdict:
    return Verdict(result=FAIL, found=found, remedy=remedy)


def not_here(found: str) -> Verdict:
    return Verdict(result=NOT_HERE, found=found)


def examined(check: str, where: str, act: Callable[[], Verdict], *, seconds: float, remedy: str) -> Finding:
    """Run a check. It fails, with this `remedy`, if it raises or takes longer than `seconds`."""
    verdicts: list[Verdict] = []

    def run() -> None:
        verdicts.append(judged(act, remedy))

    thread = threading.Thread(target=run, name=f"doctor {check}", daemon=True)
    thread.start()
    thread.join(seconds)
    verdict = verdicts[0] if verdicts else failed(f"no answer within {seconds:g} s", remedy)
    return Finding(
        check=check,
        where=redacted(where),
        result=verdict.result,
        found=redacted(verdict.found),
        remedy=redacted(verdict.remedy),
    )


def judged(act: Callable[[], Verdict], remedy: str) -> Verdict:
    """Return a check's verdict; a check that raises has failed."""
    try:
        return act()
    except Exception as error:  # any error of a library becomes a row of the table
        return failed(said(error), remedy)


def said(error: BaseException) -> str:
    """Format an error in a line or two, without secrets."""
    text = " ".join(str(error).split()) or "no message"
    text = text if isinstance(error, TpnRayError) else f"{type(error).__name__}: {text}"
    return redacted(text)[:MOST_CHARACTERS]


def folded(findings: Iterable[Finding]) -> list[Finding]:
    """Merge equal rows of several nodes; of checks that passed, the first stands for all."""
    rows: dict[tuple[str, ...], list[Finding]] = {}
    for finding in findings:
        fine = finding.result in (PASS, NOT_HERE)
        key = (finding.check, finding.result, *(() if fine else (finding.found, finding.remedy)))
        rows.setdefault(key, []).append(finding)
    return [_joined(alike) for alike in rows.values()]


def _joined(alike: Sequence[Finding]) -> Finding:
    places = list(dict.fromkeys(finding.where for finding in alike))
    texts = list(dict.fromkeys(finding.found for finding in alike))
    shown = ", ".join(places) if len(places) <= 3 else f"{', '.join(places[:2])} and {len(places) - 2} more"
    return replace(alike[0], where=shown, found=texts[0] if len(texts) == 1 else f"for example {texts[0]}")
