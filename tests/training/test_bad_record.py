from __future__ import annotations

from pathlib import Path

from tpn_ray.training import bad_record

BAD = {"val/a.mp4": ("/videos/val/a.mp4", "damaged", "the decoder refused frame 3")}


def test_what_is_put_on_record_comes_back(tmp_path: Path) -> None:
    assert bad_record.read(str(tmp_path), "v1") == ({}, "")
    bad_record.write(str(tmp_path), "v1", BAD)
    assert bad_record.read(str(tmp_path), "v1") == (BAD, "")
    assert bad_record.read(str(tmp_path), "v2") == ({}, ""), "of another dataset"


def test_a_damaged_record_is_told_and_stops_nothing(tmp_path: Path) -> None:
    for content in (b"", b"{", b"[]", b'{"dataset_version": "v1", "bad": [1]}'):
        (tmp_path / bad_record.NAME).write_bytes(content)
        bad, fault = bad_record.read(str(tmp_path), "v1")
        assert bad == {}
        assert "bad.json is damaged" in fault
