from __future__ import annotations

import io
import json

from rich.console import Console

from tpn_ray.doctor import verdict_table
from tpn_ray.doctor.findings import FAIL, PASS, Finding

ROWS = [
    Finding(check="disk", where="a", result=PASS, found="[50] GB free"),
    Finding(check="disk", where="b", result=FAIL, found="1 GB free", remedy="free some"),
]


def test_a_failed_row_stands_above_its_remedy() -> None:
    console = Console(width=100, file=io.StringIO())
    console.print(verdict_table.as_table(ROWS))
    text = console.file.getvalue()
    assert "[50] GB free" in text  # not taken for markup
    assert text.index("1 GB free") < text.index("-> free some")
    assert verdict_table.summary(ROWS) == "2 checks: 1 fail, 1 pass"


def test_the_file_has_every_row() -> None:
    content = json.loads(verdict_table.as_json(ROWS))
    assert content["passed"] is False
    assert content["findings"][1]["remedy"] == "free some"
    assert json.loads(verdict_table.as_json(ROWS[:1]))["passed"] is True
