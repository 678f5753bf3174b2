"""Secrets in every form they are known to take in messages, and texts that hold none."""

from __future__ import annotations

import base64
import json
import shlex
import time
import urllib.parse
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tpn_ray import recipes
from tpn_ray.errors import ConfigError
from tpn_ray.recipe import to_plain
from tpn_ray.redaction import redacted, refuse_credentials

AWS = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
OTHER = "je7MtGbClwBF/2Zp9Utk/h3yCo8nvbEXAMPLEKEY"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://user:hunter22@host:5000/x", "http://***@host:5000/x"),
        ("see postgresql://u:p@ss@host/db now", "see postgresql://***@host/db now"),
        ("s3://AKIA:ab/c+d@bucket/key", "s3://***@bucket/key"),
        ("s3://bucket/k?access_key=A1&secret_key=B2&x=1", "s3://bucket/k?access_key=***&secret_key=***&x=1"),
        ("https://b/k?X-Amz-Signature=abc&X-Amz-Date=1", "https://b/k?X-Amz-Signature=***&X-Amz-Date=***"),
        ("'http://token@host', twice 'http://u:p@host'", "'http://***@host', twice 'http://***@host'"),
        ("http://user:pw\nline@host/", "http://***@host/"),
    ],
)
def test_credentials_of_uris_are_taken_out(text: str, clean: str) -> None:
    assert redacted(text) == clean


FORMS = {
    "presigned S3": (
        "https://b.s3.amazonaws.com/k?X-Amz-Algorithm=AWS4&X-Amz-Credential=AKIAABCDEF%2F2026"
        "&X-Amz-Signature=deadbeefcafe&X-Amz-Security-Token=FwoGZX",
        ("AKIAABCDEF", "deadbeefcafe", "FwoGZX"),
    ),
    "signed for Google": (
        "https://storage.googleapis.com/b/k?X-Goog-Algorithm=GOOG4&X-Goog-Credential=sa%40x&X-Goog-Signature=deadbeef",
        ("sa%40x", "deadbeef"),
    ),
    "shared access of Azure": ("https://a.blob.core.windows.net/c/k?sv=2022&sig=deadbeef%3D", ("deadbeef",)),
    "CloudFront": ("https://d.cloudfront.net/k?Policy=eyJ&Signature=deadbeef&Key-Pair-Id=K123", ("deadbeef",)),
    "a signed URL inside another": (
        "https://p/?url=https%3A%2F%2Fb%2Fk%3FX-Amz-Signature%3Ddeadbeef%26x%3D1",
        ("deadbeef",),
    ),
    "a fragment": ("https://app/#access_token=deadbeef&x=1", ("deadbeef",)),
    "escaped for HTML": ("https://b/k?x=1&amp;X-Amz-Signature=deadbeef", ("deadbeef",)),
    "a password": ("http://user:secretpw@mlflow:5000/", ("secretpw", "user")),
    "a database": ("postgresql://mlflow:s3cr3tpw@db:5432/x", ("s3cr3tpw",)),
    "Basic": (f"Authorization: Basic {base64.b64encode(b'user:hunter22').decode()}", ("dXNlcjpodW50ZXIyMg",)),
    "Basic alone": (f"sent Basic {base64.b64encode(b'user:hunter22').decode()}", ("dXNlcjpodW50ZXIyMg",)),
    "Bearer": ("Authorization: Bearer abcdefgh12345678.x", ("abcdefgh12345678",)),
    "Bearer alone": ("curl -H 'X: Bearer abcdefgh12345678'", ("abcdefgh12345678",)),
    "a header in a dict": ("{'Authorization': 'Bearer abc12345', 'Accept': '*/*'}", ("abc12345",)),
    "a header in a list": (
        "[('Authorization', 'AWS4-HMAC-SHA256 Credential=AK/x, Signature=deadbeef')]",
        ("deadbeef",),
    ),
    "a header of AWS": ("authorization: AWS4-HMAC-SHA256 Credential=AK/2026, Signature=deadbeef", ("deadbeef", "AK/")),
    "a header of curl": ("curl -H 'X-Api-Key: abcd1234efgh'", ("abcd1234efgh",)),
    "cookies": ("Set-Cookie: session=abcdef123; Path=/", ("abcdef123",)),
    "Hugging Face": ("token hf_ZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZ", ("ZZZZ",)),
    "GitHub": ("git clone with ghp_abcdefghijklmnopqrstuvwxyz0123456789", ("ghp_abc",)),
    "a web token": ("got eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", ("c2ln", "eyJzdW")),
    "an AWS pair": (f"AKIAI44QH8DHBEXAMPLE:{OTHER}", (OTHER, "AKIAI44")),
    "a profile": (f"aws_access_key_id = AKIAI44QH8DHBEXAMPLE\naws_secret_access_key = {OTHER}", (OTHER, "AKIAI44")),
    "a profile on a line": (f"aws_access_key_id = AKIAI44QH8DHBEXAMPLE aws_secret_access_key = {OTHER}", (OTHER,)),
    "JSON": (json.dumps({"SecretAccessKey": OTHER, "SessionToken": "FwoGZXIvYXdz"}), (OTHER, "FwoGZXIvYXdz")),
    "JSON in JSON": (json.dumps({"said": json.dumps({"SecretAccessKey": OTHER})}), (OTHER,)),
    "JSON with escapes": (json.dumps({"password": 'ab"cd\\ef'}), ("cd", "ef")),
    "Python": (repr({"secret_access_key": OTHER, "n": 1}), (OTHER,)),
    "keywords": (f"Client(aws_secret_access_key='{OTHER}', region='x')", (OTHER,)),
    "YAML": ("redis:\n  password: hunter22\n  port: 1", ("hunter22",)),
    "YAML, a word": ("redis:\n  password: correcthorse\n  port: 1", ("correcthorse",)),
    "a variable": (f"AWS_SECRET_ACCESS_KEY={OTHER}", (OTHER,)),
    "exported": (f"export AWS_SECRET_ACCESS_KEY='{OTHER}' X=1", (OTHER,)),
    "in lower case": ("wandb_api_key=abcdef0123", ("abcdef0123",)),
    "a connection string": ("DefaultEndpointsProtocol=https;AccountName=a;AccountKey=abc/def+g==;", ("abc/def",)),
    "Slack": ("https://hooks.slack.com/services/T000/B000/XXXXXXXXXXXX", ("T000", "XXXX")),
    "flags": ("--password hunter2hunter2 --token abcdefghijk", ("hunter2", "abcdefghijk")),
    "flags with =": ("redis-server --requirepass=x1 --api-key=abcdefghijk", ("abcdefghijk",)),
    "flags in a list": ("['mlflow', '--db-password', 'hunter22']", ("hunter22",)),
    "a private key": ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNz", ("b3BlbnNz",)),
    "a whole private key": (
        "a -----BEGIN RSA PRIVATE KEY-----\nMIIE\nabcd\n-----END RSA PRIVATE KEY----- b",
        ("MIIE", "abcd"),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_unknown_secret_is_recognized(form: str) -> None:
    text, secrets = FORMS[form]
    clean = redacted(text)
    assert not [secret for secret in secrets if secret in clean], clean
    assert "***" in clean
    assert redacted(clean) == clean


@pytest.mark.parametrize(
    "name",
    [
        *("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "PGPASS", "DATABASE_URL", "WANDB_KEY", "GIT_CREDENTIALS", "my_secret"),
        *("SSH_PASSPHRASE", "REDIS_PASSWD", "PRIVATE_KEY", "PRIVATEKEY", "DB_PASS", "MYSQL_PWD", "SENTRY_DSN"),
        *("GITHUB_PAT", "AZURE_SAS", "REGISTRY_AUTH", "API_KEYS", "aws_session_token", "SLACK_WEBHOOK"),
    ],
)
def test_values_of_secret_variables_are_taken_out_of_any_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "planted-1")
    assert redacted("it said planted-1, twice: planted-1") == "it said ***, twice: ***"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RAY_AUTH_TOKEN_PATH", "/home/me/token"),
        ("RAY_AUTH_MODE", "token-of-a-file"),
        ("GOOGLE_APPLICATION_CREDENTIALS", __file__),
        ("TOKENIZERS_PARALLELISM", "disabled"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token"),
        ("PWD", "/home/me"),
        ("OLDPWD", "/home/me"),
        ("BYPASS", "/home/me"),
        ("HOTKEY", "control-c"),
        ("MY_PASSWORD", "abc"),
        ("REDIS_AUTH", "required"),
        ("SECRET_NAME", "tpn-ray-credentials"),
        ("DATABASE_URL", "sqlite:////data/mlflow.db"),
        ("PATH", "/usr/bin:/bin"),
    ],
)
def test_values_of_other_variables_stay(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert redacted(f"it is {value} now") == f"it is {value} now"


def test_the_longest_of_several_secrets_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalr/XUtn")
    monkeypatch.setenv("SOME_PASSWORD", "wJalr/XUtn-longer")
    assert redacted("it said wJalr/XUtn-longer, wJalr/XUtn") == "it said ***, ***"


def test_passwords_of_uris_in_variables_and_arguments_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://alice:s3cret%2Fpw9@host:5000")
    monkeypatch.setattr("sys.argv", ["train.py", "--tracking-uri", "http://bob:hunter2hunter2@host"])
    basic = base64.b64encode(b"alice:s3cret/pw9").decode()
    clean = redacted(f"refused s3cret/pw9, s3cret%2Fpw9, hunter2hunter2, {basic}; host:5000")
    assert clean == "refused ***, ***, ***, ***; host:5000"


def in_a_folder(text: str) -> bool:
    """Whether a text is a path below a folder of this machine."""
    parent = Path(text).parent
    return text.startswith("/") and parent.name != "" and parent.is_dir()


SECRET = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="'\"\\"), min_size=8, max_size=60
).filter(lambda text: not text.isalpha() and not in_a_folder(text))
"""What keys and generated passwords are made of; a word alone, such as "required", may be no secret, and neither is a
path: hypothesis tries those that the code names, such as /proc/1."""
WORD = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", min_size=12, max_size=40)
TEXTS = st.text(max_size=20)

SPELLED = {
    "as it is": lambda secret: secret,
    "percent-encoded": lambda secret: urllib.parse.quote(secret, safe=""),
    "percent-encoded but for slashes": urllib.parse.quote,
    "in a form": urllib.parse.quote_plus,
    "in small hexadecimal": lambda secret: "".join(
        c if c.isalnum() or c in "-._~" else f"%{ord(c):02x}" for c in secret
    ),
    "percent-encoded twice": lambda secret: urllib.parse.quote(urllib.parse.quote(secret, safe=""), safe=""),
    "in JSON": json.dumps,
    "in JSON in JSON": lambda secret: json.dumps(json.dumps(secret)),
    "as Python": repr,
    "as bytes": lambda secret: repr(secret.encode()),
    "for a shell": shlex.quote,
    "in base64": lambda secret: base64.b64encode(secret.encode()).decode(),
    "as a user's in base64": lambda secret: base64.b64encode(b"me:" + secret.encode()).decode(),
    "as another user's": lambda secret: base64.b64encode(b"alice:" + secret.encode()).decode(),
    "as a third user's, for URLs": lambda secret: base64.urlsafe_b64encode(b"alic:" + secret.encode()).decode(),
}


@pytest.mark.parametrize("spelled", SPELLED)
@given(secret=SECRET, before=TEXTS, after=TEXTS)
@example(secret="//000000", before="", after="")
def test_a_known_secret_survives_in_no_spelling(spelled: str, secret: str, before: str, after: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLANTED_SECRET", secret)
        planted = SPELLED[spelled](secret)
        clean = redacted(f"{before} {planted} {after}")
    core = planted.strip("b'\"\\=")
    assert core not in clean.replace(before, "").replace(after, "")


AROUND = {
    "a URI": "GET http://alice:{}@host:5000/api failed",
    "a query": "https://b/k?x=1&X-Amz-Signature={}&y=2",
    "a query of Google": "https://b/k?X-Goog-Signature={}",
    "JSON": '{{"region": "x", "SecretAccessKey": "{}"}}',
    "Python": "{{'password': '{}', 'n': 1}}",
    "a setting": "aws_secret_access_key = {}",
    "a variable": "env AWS_SECRET_ACCESS_KEY={} python x.py",
    "YAML": "  password: {}\n",
    "a flag": "server --token {} --port 1",
    "a flag with =": "server --password={} --port 1",
    "a header": "Authorization: Bearer {}\nAccept: x",
    "a header of a service": "x-api-key: {}\r\n",
    "Slack": "https://hooks.slack.com/services/{}",
    "Hugging Face": "downloading with hf_{}zzzzzzzz",
    "a private key": "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----",
}


@pytest.mark.parametrize("around", AROUND)
@given(secret=WORD)
def test_an_unknown_secret_survives_in_no_form(around: str, secret: str) -> None:
    assume(secret not in AROUND[around])
    clean = redacted(AROUND[around].format(secret))
    assert secret not in clean
    assert redacted(clean) == clean


NAMES = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789 _-.,()[]+", min_size=1, max_size=40).filter(
    lambda name: not name.lower().endswith(("authorization", "cookie"))
)
"""Those of folders and classes; the name of a header makes the next word of a list a secret."""


@given(
    folder=NAMES,
    name=NAMES,
    loss=st.floats(0, 9),
    step=st.integers(0, 10**7),
    version=st.binary(min_size=8, max_size=32),
)
def test_what_holds_no_secret_stays_as_it_is(folder: str, name: str, loss: float, step: int, version: bytes) -> None:
    for text in (
        f"s3://bucket/{folder}/{name}.mp4",
        f"bad video (damaged): /data/{folder}/{name}.mkv: the decoder refused 3 of its 40 frames",
        f"epoch 3/20  step {step}/{step}  loss {loss:.3f}  top-1 45.0%  120 clips/s  waiting for data 3%  5 s left",
        f"checkpoint s3://bucket/runs/k400/step-{step:08d}",
        f"--name {shlex.quote(name)} --optim.lr {loss} --model.alpha 4 8 --storage s3://bucket/runs",
        f"version {version.hex()}; sha256 {version.hex()}",
        json.dumps({"class": name, "loss": loss, "uri": f"s3://bucket/{folder}"}),
    ):
        assert redacted(text) == text


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipes_stay_as_they_are(name: str) -> None:
    text = json.dumps(to_plain(recipes.recipe(name)), indent=1)
    assert redacted(text) == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "s3://bucket/a@b.mp4",
            "http://host:5000/a@b",
            "http://127.0.0.1:5000",
            "mail a@b.c",
            "/data/x=1?y=2",
            "lr=0.1",
        ),
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        "RAY_AUTH_MODE=token ray get-auth-token --generate",
        "ExpiredToken: the provided token has expired",
        "The security token included in the request is invalid",
        "basic information about a bearer of bad news",
        "a token is missing: give one",
        "secretary: anna and bob",
        "tokens: 4096, token_count: 5, token_path=/x, {'key': 'clips/0001.mp4', 'keys': [1]}",
        "open http://host:5000\nmail a@b.c",
        "",
    ],
)
def test_prose_and_places_stay_as_they_are(text: str) -> None:
    assert redacted(text) == text


def test_the_guide_stays_as_it_is_but_for_its_examples_of_secrets() -> None:
    root = Path(__file__).parents[1]
    named = [root / file for file in ("README.md", "CHANGELOG.md", "cluster/README.md")]
    for file in [*named, *root.glob("docs/**/*.md")]:
        before = file.read_text().split("\n")
        after = redacted("\n".join(before)).split("\n")
        changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
        assert all("=" in old and ("KEY" in old or "TOKEN" in old or "password" in old) for old, _ in changed), changed


@pytest.mark.parametrize(
    "text",
    [
        "token" * 40_000,
        "//u:" * 40_000,
        "eyJaaaaaaaa-" * 20_000,
        "password=" + '\\"' * 50_000,
        "a" * 400_000,
        "--token " * 20_000,
    ],
    ids=lambda text: text[:9],
)
def test_long_texts_take_no_long_time(text: str) -> None:
    """In proportion to their length, that is; a second is a hundred times what it takes."""
    begin = time.process_time()
    redacted(text)
    assert time.process_time() - begin < 20


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA:se/cret@bucket/x",
        "s3://AKIA@bucket/x",
        "s3://b/x?secret_key=secret",
        "https://b/k?X-Amz-Signature=secret",
        "https://b/k?X-Goog-Signature=secret",
        "s3://b/k?AWSAccessKeyId=x&Signature=secret",
        "https://a.blob.core.windows.net/c/k?sv=2022&sig=secret",
        "s3://b/k?sas_token=secret",
        "s3://b/k?client_secret=secret",
    ],
)
def test_storage_with_credentials_is_refused_without_repeating_them(uri: str) -> None:
    with pytest.raises(ConfigError, match="holds credentials; leave them out") as caught:
        refuse_credentials("weights", uri)
    said = str(caught.value)
    for name in ("AWS_SECRET_ACCESS_KEY", "secret_key", "client_secret"):
        said = said.replace(name, "")
    assert "cret" not in said


def test_plain_places_are_taken() -> None:
    for uri in ("s3://bucket/a@b/c=d.mp4", "runs/x", "/data/key=secret", "file:///data/a@b", ""):
        refuse_credentials("weights", uri)
