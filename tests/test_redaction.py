from __future__ import annotations

import pytest

from tpn_ray.errors import ConfigError
from tpn_ray.redaction import redacted, refuse_credentials


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://user:hunter22@host:5000/x", "http://***@host:5000/x"),
        ("see postgresql://u:p@ss@host/db now", "see postgresql://***@host/db now"),
        ("s3://AKIA:ab/c+d@bucket/key", "s3://***@bucket/key"),
        ("s3://bucket/k?access_key=A1&secret_key=B2&x=1", "s3://bucket/k?access_key=***&secret_key=***&x=1"),
        ("https://b.s3.amazonaws.com/k?X-Amz-Signature=abc&X-Amz-Date=1", None),
        ("'http://token@host', twice 'http://u:p@host'", "'http://***@host', twice 'http://***@host'"),
    ],
)
def test_credentials_of_uris_are_taken_out(text: str, clean: str | None) -> None:
    assert redacted(text) == (clean or "https://b.s3.amazonaws.com/k?X-Amz-Signature=***&X-Amz-Date=***")


@pytest.mark.parametrize(
    "text",
    ["s3://bucket/a@b.mp4", "http://host:5000/a@b", "http://127.0.0.1:5000", "mail a@b.c", "/data/x=1?y=2", "lr=0.1"],
)
def test_what_holds_none_is_left_alone(text: str) -> None:
    assert redacted(text) == text


def test_values_of_secret_variables_are_taken_out_of_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalr/XUtn")
    monkeypatch.setenv("SOME_PASSWORD", "wJalr/XUtn-longer")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/home/me/token")
    assert redacted("it said wJalr/XUtn-longer, wJalr/XUtn, /home/me/token") == "it said ***, ***, /home/me/token"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA:se/cret@bucket/x",
        "s3://AKIA@bucket/x",
        "s3://b/x?secret_key=secret",
        "https://b/k?X-Amz-Signature=secret",
    ],
)
def test_storage_with_credentials_is_refused_without_repeating_them(uri: str) -> None:
    with pytest.raises(ConfigError, match="holds credentials; leave them out") as caught:
        refuse_credentials("weights", uri)
    assert "cret" not in str(caught.value).replace("AWS_SECRET_ACCESS_KEY", "").replace("secret_key", "")


def test_plain_places_are_taken() -> None:
    for uri in ("s3://bucket/a@b/c=d.mp4", "runs/x", "/data/key=secret", "file:///data/a@b", ""):
        refuse_credentials("weights", uri)
