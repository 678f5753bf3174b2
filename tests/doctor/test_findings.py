from __future__ import annotations

import time

import pytest

from tpn_ray.doctor.findings import FAIL, NOT_HERE, PASS, Finding, Verdict, examined, folded, passed
from tpn_ray.errors import StorageError


def raising(error: Exception) -> Verdict:
    raise error


def test_a_check_that_raises_has_failed() -> None:
    one = examined("x", "here", lambda: raising(StorageError("no\nbucket")), seconds=20, remedy="make one")
    assert (one.result, one.found, one.remedy) == (FAIL, "no bucket", "make one")
    other = examined("x", "here", lambda: raising(KeyError("k")), seconds=20, remedy="make one")
    assert other.found == "KeyError: 'k'"


def test_a_check_that_hangs_has_failed() -> None:
    found = examined("x", "here", lambda: time.sleep(60) or passed("late"), seconds=0.1, remedy="unblock it")  # type: ignore[func-returns-value]
    assert (found.result, found.found, found.remedy) == (FAIL, "no answer within 0.1 s", "unblock it")


def test_rows_hold_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    found = examined("x", "http://u:pw@host", lambda: passed("planted-secret works"), seconds=20, remedy="")
    assert (found.where, found.found) == ("http://***@host", "*** works")


def finding(where: str, result: str, found: str) -> Finding:
    return Finding(check="disk", where=where, result=result, found=found, remedy="free some" * (result == FAIL))


def test_nodes_that_are_alike_are_one_row() -> None:
    rows = folded(
        [
            finding("a", PASS, "5 GB"),
            finding("b", PASS, "6 GB"),
            finding("c", FAIL, "full"),
            finding("d", FAIL, "fuller"),
            finding("e", PASS, "7 GB"),
            finding("f", PASS, "7 GB"),
            finding("g", NOT_HERE, "no disk"),
        ]
    )
    assert [(row.where, row.result, row.found) for row in rows] == [
        ("a, b and 2 more", PASS, "for example 5 GB"),
        ("c", FAIL, "full"),
        ("d", FAIL, "fuller"),
        ("g", NOT_HERE, "no disk"),
    ]
