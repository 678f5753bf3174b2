"""Shows the findings as a table and as JSON. Runs on the driver."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from tpn_ray.doctor.findings import FAIL, NOT_HERE, PASS, WARN, Finding, folded

STYLES = {PASS: "green", WARN: "yellow", FAIL: "bold red", NOT_HERE: "dim"}


def as_table(findings: Sequence[Finding]) -> Table:
    """Build a table with a row for each check; the remedy is below the finding."""
    table = Table(show_lines=False)
    for column in ("check", "where", "result", "found"):
        table.add_column(column, overflow="fold")
    for finding in folded(findings):
        text = Text(finding.found)
        if finding.remedy:
            text.append(f"\n-> {finding.remedy}", style="italic")
        table.add_row(
            Text(finding.check), Text(finding.where), Text(finding.result, style=STYLES[finding.result]), text
        )
    return table


def summary(findings: Sequence[Finding]) -> str:
    """Summarize the findings in one line."""
    counts = Counter(finding.result for finding in findings)
    shown = ", ".join(f"{counts[result]} {result}" for result in (FAIL, WARN, PASS, NOT_HERE) if counts[result])
    return f"{len(findings)} checks: {shown}"


def as_json(findings: Sequence[Finding]) -> str:
    """Encode every row of every node."""
    content = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "passed": not any(finding.result == FAIL for finding in findings),
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }
    return json.dumps(content, indent=1) + "\n"
