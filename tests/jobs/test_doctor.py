"""The doctor as a user calls it: on a sound cluster with a real store and tracker, and on what is wrong with one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs.processes import in_a_fork, refusal, without_ray
from tests.ray_head import BIN, RayHead, ray_head
from tests.servers import S3Server, free_port
from tpn_ray.datasets.toy import ToyConfig, write_toy

pytestmark = pytest.mark.cluster

PATIENT = ["--check-seconds", "100", "--wait-seconds", "100"]


@pytest.fixture(scope="module")
def head(s3: S3Server) -> Iterator[RayHead]:
    """A cluster of one node, whose processes know the store's keys."""
    with ray_head(2, s3.environment) as running:
        yield running


def examine(head: RayHead, out: Path, *flags: str, **changed: str) -> tuple[int, str, list[dict[str, str]]]:
    """Status, output and rows of the doctor with the head's environment, some of it changed."""
    arguments = ["--address", head.address, "--json", str(out), *PATIENT, *flags]
    status, output = in_a_fork("doctor", arguments, {**head.environment, "COLUMNS": "200", **changed})
    assert "Traceback" not in output, output
    rows: list[dict[str, str]] = json.loads(out.read_text())["findings"]
    assert all(row["remedy"] for row in rows if row["result"] in ("fail", "warn")), output
    return status, output, rows


def results(rows: list[dict[str, str]]) -> dict[str, str]:
    return {row["check"]: row["result"] for row in rows}


def test_a_sound_cluster(
    cluster: RayHead, s3: S3Server, mlflow_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    data = f"s3://{s3.bucket}/doctor-toy"
    write_toy(data, ToyConfig(train_per_class=1, val_per_class=1))
    places = ["--storage", f"s3://{s3.bucket}/doctor", "--data", data, "--tracking-uri", mlflow_url]
    status, output, rows = examine(cluster, tmp_path / "rows.json", *places)
    assert status == 0, output
    found = results(rows)
    steps = ("write", "list", "read", "ranged read", "conditional write", "multipart upload", "clock", "delete")
    sound = [f"storage: {step}" for step in steps] + [f"data: {step}" for step in ("list", "read", "ranged read")]
    sound += ["tracking: server", "tracking: run", "client", "cluster", "all-reduce (gloo)"]
    sound += ["versions", "shared memory", "decoder", "confinement", "storage from the node", "token"]
    assert {name: found[name] for name in sound} == dict.fromkeys(sound, "pass"), output
    assert found["GPU"] in ("not here", "warn")
    assert found["ports"] in ("pass", "warn")
    assert "0 fail" not in output
    assert s3.secret_key not in output + (tmp_path / "rows.json").read_text()


@pytest.mark.long
def test_a_node_that_is_not_like_the_others(head: RayHead, s3: S3Server, tmp_path: Path) -> None:
    """It has another av (by its metadata), and nobody told it the store's keys."""
    info = tmp_path / "site" / "av-0.0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: av\nVersion: 0.0.1\n")
    own = {name: value for name, value in head.environment.items() if not name.startswith("AWS_")}
    own |= {
        "PYTHONPATH": str(tmp_path / "site"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": s3.endpoint_url,
    }
    command = [
        str(BIN / "ray"),
        "start",
        f"--address={head.address}",
        "--num-cpus=1",
        f"--object-store-memory={80 * 2**20}",
    ]
    done = subprocess.run(command, check=False, env=own, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    status, output, rows = examine(head, tmp_path / "rows.json", "--storage", f"s3://{s3.bucket}/doctor")
    assert status == 1, output

    def of(check: str, result: str) -> list[dict[str, str]]:
        return [row for row in rows if row["check"] == check and row["result"] == result]

    assert len(of("decoder", "pass")) == 2, output
    (same,), (other,) = of("versions", "pass"), of("versions", "fail")
    assert same["where"] != other["where"]
    assert "av 0.0.1 (driver 18.1.0)" in other["found"]
    assert "constraints.txt" in other["remedy"]
    (blind,) = of("storage from the node", "fail")
    assert blind["where"] == other["where"]
    assert "no credentials were found" in blind["found"]
    assert "where the node starts" in blind["remedy"]


def test_what_is_wrong_is_a_row_with_its_remedy(cluster: RayHead, s3: S3Server, tmp_path: Path) -> None:
    nobody = f"http://someone:planted-password@127.0.0.1:{free_port()}"
    places = ["--storage", f"s3://{s3.bucket}/doctor", "--data", "s3://nobucket/x", "--tracking-uri", nobody]
    wrong = {"AWS_SECRET_ACCESS_KEY": "planted-and-wrong", "RAY_AUTH_TOKEN": "badc0de0" * 8, "RAY_AUTH_MODE": "token"}
    status, output, rows = examine(cluster, tmp_path / "rows.json", *places, **wrong)
    assert status == 1, output
    by_check = {row["check"]: row for row in rows}
    failing: dict[str, tuple[str, str]] = {
        "storage: write": ("SignatureDoesNotMatch", "s3:PutObject"),
        "data: list": ("cannot list s3://nobucket/x", "s3:ListBucket"),
        "tracking: server": ("127.0.0.1", "--tracking-uri"),
        "cluster": ("token", "~/.ray/auth_token"),
    }
    for check, (found, remedy) in failing.items():
        row = by_check[check]
        assert row["result"] == "fail", output
        assert found.lower() in row["found"].lower(), output
        assert remedy in row["remedy"], output
    assert by_check["storage: read"]["result"] == by_check["tracking: run"]["result"] == "not here"
    assert by_check["storage: clock"]["result"] == "pass"
    for secret in ("planted", "badc0de0"):
        assert secret not in output + (tmp_path / "rows.json").read_text()


def test_wrong_flags_and_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    assert "workers=1: an all-reduce needs at least 2" in refusal("doctor", "--workers", "1")
    assert "unknown recipe 'tony'" in refusal("doctor", "--recipe", "tony")
    assert "gs:// is not supported" in refusal("doctor", "--storage", "gs://bucket/x")
    flags = ["--storage", str(tmp_path), "--address", f"127.0.0.1:{free_port()}"]
    status, output = in_a_fork("doctor", flags, without_ray())
    assert status == 1, output
    assert "no Ray cluster answers at" in output
    assert "Traceback" not in output
