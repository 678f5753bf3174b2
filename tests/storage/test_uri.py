"""URIs: their spelling and their parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tpn_ray import storage
from tpn_ray.errors import ConfigError


def test_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("runs/a") == str(tmp_path / "runs/a")
    assert storage.absolute(tmp_path / "x") == str(tmp_path / "x")
    assert storage.absolute("file:///data/my%20videos/") == "/data/my videos"
    assert storage.absolute("s3://bucket/a/b/") == "s3://bucket/a/b"
    assert storage.absolute("s3://bucket/") == storage.absolute("s3://bucket") == "s3://bucket"
    assert storage.absolute(storage.absolute("s3://bucket/ä b")) == "s3://bucket/ä b"
    for wrong, message in (("", "empty path"), ("gs://b/k", "gs:// is not supported"), ("s3:///k", "no bucket")):
        with pytest.raises(ConfigError, match=message):
            storage.absolute(wrong)
    with pytest.raises(ConfigError, match="write file:///absolute/path"):
        storage.absolute("file://host/x")
    for secret in (
        "s3://AKIA:pass/word@bucket/k",
        "s3://b/k?secret_key=password",
        "https://b/k?X-Amz-Signature=password",
    ):
        with pytest.raises(ConfigError, match="holds credentials; leave them out") as caught:
            storage.absolute(secret)
        assert "word" not in str(caught.value)


def test_join_name_parent() -> None:
    assert storage.join("s3://bucket", "a", "/b/", "c.mp4") == "s3://bucket/a/b/c.mp4"
    assert storage.join("/data/", "a") == "/data/a"
    assert storage.name("s3://bucket/a/b.mp4") == "b.mp4"
    assert storage.parent("s3://bucket/a/b.mp4") == "s3://bucket/a"
    assert storage.parent("s3://bucket/a") == "s3://bucket"
    assert storage.parent("/a") == "/"
    with pytest.raises(ConfigError, match="is a bucket"):
        storage.parent("s3://bucket")
