from __future__ import annotations

from pathlib import Path

import pytest

from tpn_ray import storage
from tpn_ray.doctor import stores
from tpn_ray.doctor.findings import FAIL, NOT_HERE, PASS, WARN


def test_a_folder_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    rows = stores.examine_storage(str(tmp_path), 60)
    assert {row.check.partition(": ")[2]: row.result for row in rows} == {
        "write": PASS,
        "list": PASS,
        "read": PASS,
        "ranged read": PASS,
        "conditional write": PASS,
        "multipart upload": PASS,
        "clock": NOT_HERE,
        "delete": PASS,
    }
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    first, *others = stores.examine_storage(str(tmp_path / "file"), 60)
    assert (first.result, first.remedy) == (FAIL, stores.WRITE_REMEDY)
    assert {row.result for row in others} == {NOT_HERE}


def test_data_is_only_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.mp4").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "a" / "empty.mp4").touch()
    rows = stores.examine_data(str(tmp_path), 60)
    assert [row.result for row in rows] == [PASS] * 3
    assert "2 files" in rows[0].found
    assert rows[2].found == "1000 bytes from 1706"
    (absent, *others) = stores.examine_data(str(tmp_path / "absent"), 60)
    assert absent.result == FAIL
    assert {row.result for row in others} == {NOT_HERE}
    assert [row.result for row in stores.examine_data("", 60)] == [NOT_HERE]


def test_a_store_that_changes_bytes_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda uri: right(uri)[:-1] + b"?")
    rows = {row.check: row for row in stores.examine_storage(str(tmp_path), 60)}
    for check in ("storage: read", "storage: multipart upload"):
        assert (rows[check].result, rows[check].remedy) == (FAIL, stores.BROKEN_REMEDY)


def test_a_store_that_ignores_conditions_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "create", lambda uri, data: storage.write_bytes(uri, data) is None)
    rows = {row.check: row for row in stores.examine_storage(str(tmp_path), 60)}
    row = rows["storage: conditional write"]
    assert (row.result, row.remedy) == (WARN, stores.CONDITION_REMEDY)


@pytest.mark.parametrize(
    ("skew", "result", "words"),
    [
        (0.4, PASS, "0 s ahead"),
        (-70.0, WARN, "70 s behind"),
        (3600.0, FAIL, "3600 s ahead"),
        (None, NOT_HERE, "no time"),
    ],
)
def test_clocks(skew: float | None, result: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "clock_skew_seconds", lambda uri: skew)
    verdict = stores.clock("s3://bucket/x")
    assert verdict.result == result
    assert words in verdict.found
