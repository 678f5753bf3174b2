"""Weights from disks, object storage, a web server, and Hugging Face's client, each with a real server."""

from __future__ import annotations

import hashlib
import http.server
import os
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.servers import S3Server
from tpn_ray.errors import CheckpointError, ConfigError, NotFoundError, StorageError
from tpn_ray.model import sources
from tpn_ray.model.recognizer import ModelConfig, build_model
from tpn_ray.model.sources import check_source, expected_hash, hub_file, local_file
from tpn_ray.model.weights import load_weights

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "c" * 40


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, and one repository in the manner of Hugging Face; /flaky answers at the third time."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        server: Any = self.server
        server.asked[f"{self.command} {self.path}"] += 1
        status, data, headers = 200, server.files.get(self.path), {}
        if self.path == "/flaky-00000000.pth" and server.asked[f"GET {self.path}"] < 3:
            status, data = 503, b""
        elif data is None:
            status, data = 404, b"no such file"
            headers = {"X-Error-Code": "EntryNotFound"} if "/resolve/" in self.path else {}
        elif "/resolve/" in self.path:
            headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


class Server(http.server.ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: Counter[str] = Counter()
        self.files: dict[str, bytes] = {}


def write_certificate(key: Path, certificate: Path) -> None:
    """Write a key and a certificate for localhost that nobody signed."""
    secret = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]), datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(secret, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    key.write_bytes(secret.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """An HTTPS server on localhost whose certificate this process trusts, and an empty cache."""
    monkeypatch.setenv("TPN_RAY_WEIGHTS_CACHE", str(tmp_path / "cache"))
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    write_certificate(key, certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with Server() as running:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        running.socket = context.wrap_socket(running.socket, server_side=True)
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def at(server: Server, path: str) -> str:
    return f"https://localhost:{server.server_port}{path}"


def test_a_file_on_disk_is_used_where_it_is(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(CONTENT)
    assert local_file(str(file)) == local_file(file.as_uri()) == file
    with pytest.raises(NotFoundError, match="none"):
        local_file(str(tmp_path / "none"))


def test_processes_of_a_node_fetch_a_file_once(server: Server) -> None:
    server.files["/net.pth"] = CONTENT
    uri = at(server, f"/net.pth#sha256={SHA256}")
    with ThreadPoolExecutor(8) as pool:
        files = set(pool.map(local_file, [uri] * 8))
    assert {file.read_bytes() for file in files} == {CONTENT}
    assert server.asked == {"GET /net.pth": 1}


def test_another_content_is_refused_and_not_kept(server: Server) -> None:
    server.files["/net.pth"] = b"other"
    uri = at(server, f"/net.pth#sha256={SHA256}")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=f"not {SHA256}: it is another file"):
            local_file(uri)
    assert server.asked == {"GET /net.pth": 2}
    assert [file.suffix for file in sources.cache().iterdir()] == [".lock"]


def test_the_hash_in_a_name_counts(server: Server) -> None:
    path = f"/resnet-{SHA256[:8]}.pth"
    server.files |= {path: CONTENT, "/resnet-00000000.pth": CONTENT}
    assert local_file(at(server, path)).read_bytes() == CONTENT
    with pytest.raises(CheckpointError, match="not 00000000"):
        local_file(at(server, "/resnet-00000000.pth"))


def test_a_server_that_is_away_for_a_moment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/flaky-00000000.pth"] = CONTENT
    with pytest.raises(CheckpointError, match="another file"):  # it came, at the third attempt
        local_file(at(server, "/flaky-00000000.pth"))
    assert server.asked == {"GET /flaky-00000000.pth": 3}
    with pytest.raises(NotFoundError, match="does not exist"):
        local_file(at(server, "/none-00000000.pth"))
    monkeypatch.setenv("TPN_RAY_STORAGE_SECONDS", "1")
    server.shutdown()
    server.server_close()
    with pytest.raises(StorageError, match=r"cannot read https://localhost.*attempts"):
        local_file(at(server, "/gone-00000000.pth"))


def test_object_storage_is_asked_again_only_for_another_content(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TPN_RAY_WEIGHTS_CACHE", str(tmp_path / "cache"))
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    uri = f"s3://{s3.bucket}/published/weights.bin"
    check_missing = pytest.raises(NotFoundError)
    with check_missing:
        check_source(uri)
    sources.storage.write_bytes(uri, CONTENT)
    first = local_file(uri)
    assert (first.read_bytes(), local_file(uri)) == (CONTENT, first)
    sources.storage.write_bytes(uri, b"newer")
    assert local_file(uri).read_bytes() == b"newer"


HUB_PROGRAM = """
import sys
from tpn_ray.errors import NotFoundError
from tpn_ray.model.recognizer import ModelConfig, build_model
from tpn_ray.model.weights import load_weights
for uri in sys.argv[1:]:
    try:
        print(load_weights(build_model(ModelConfig(backbone="tsn_toy", classes=3, neck="none")), uri).layout)
    except NotFoundError as error:
        print(error)
"""


def test_hugging_face(server: Server, tmp_path: Path) -> None:
    """Its client, in a process of its own since it reads its settings when it is imported."""
    weights = build_model(ModelConfig(backbone="tsn_toy", classes=3, neck="none")).state_dict()
    data = safetensors.torch.save({name: value.contiguous() for name, value in weights.items()})
    server.files |= {
        "/some/net/resolve/main/model.safetensors": data,
        f"/some/net/resolve/{'b' * 40}/other.safetensors": data,
    }
    environment = {
        **os.environ,
        "HF_ENDPOINT": at(server, ""),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    names = ["hf://some/net", "hf://some/net", f"hf://some/net@{'b' * 40}/other.safetensors", "hf://some/net/none.pth"]
    command = [sys.executable, "-c", HUB_PROGRAM, *names]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert lines[:3] == ["tpn_ray"] * 3, done.stderr
    assert lines[3].startswith("hf://some/net/none.pth: Hugging Face has no such file")
    assert sum(count for asked, count in server.asked.items() if asked == f"GET {next(iter(server.files))}") == 1


def test_a_damaged_file_of_safetensors(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(safetensors.torch.save({"weight": torch.zeros(100)})[:-50])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read as a file of safetensors"):
        load_weights(build_model(ModelConfig(backbone="tsn_toy", classes=3)), file)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("https://host/net.pth", "has no hash: append #sha256="),
        ("https://host/net.pth#sha256=12", "64 hexadecimal digits"),
        ("https://user:secret@host/net.pth", r"https://.*@host/net\.pth' has no hash"),
        ("hf://net", "not written as hf://owner/name"),
        ("ftp://host/net.pth", "begins with s3://, https://, or hf://"),
    ],
)
def test_sources_that_cannot_be(uri: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        check_source(uri)
    assert "secret" not in str(refused.value)


def test_names_of_hugging_face() -> None:
    assert hub_file("hf://timm/resnet50.a1_in1k") == ("timm/resnet50.a1_in1k", None, "model.safetensors")
    assert hub_file("hf://a/b@v1.0/folder/x.pth") == ("a/b", "v1.0", "folder/x.pth")
    assert expected_hash("https://host/resnet50-0676ba61.pth") == "0676ba61"
    check_source("/a/path/that/only/workers/have.pth")
