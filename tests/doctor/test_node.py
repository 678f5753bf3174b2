from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from tpn_ray.doctor import node
from tpn_ray.doctor.decoder_check import decoder_self_test
from tpn_ray.doctor.findings import FAIL, NOT_HERE, PASS, WARN, Verdict
from tpn_ray.model.recognizer import ModelConfig
from tpn_ray.sandbox.breakout import POSSIBLE, REFUSED, BreakoutOutcome
from tpn_ray.sandbox.confinement import LAYERS, Confinement

GB = 10**9


def test_the_packages_are_those_that_the_distribution_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "demo-1.0.dist-info"
    info.mkdir()
    needs = [
        "torch==2.13.0",
        "ray[data,tune]==2.60.0",
        "mlflow<3.18,>=3.17",
        "scikit-learn",
        'onnx>=1; extra == "export"',
    ]
    lines = ["Metadata-Version: 2.1", "Name: demo", "Version: 1.0", *(f"Requires-Dist: {need}" for need in needs)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert node.required("demo") == ["torch", "ray", "mlflow", "scikit-learn"]
    assert node.required("no-such-distribution") == []


def test_versions_must_be_the_drivers() -> None:
    here = node.versions(["av", "torch", "no-such-distribution"])
    assert here.packages["no-such-distribution"] == "none"
    assert node.compare(here, here).result == PASS
    other = dataclasses.replace(here, python="3.12.1", packages={**here.packages, "av": "1.0"}, code="0")
    verdict = node.compare(other, here)
    assert verdict.result == FAIL
    assert f"Python 3.12.1 (driver {here.python}), av 1.0 (driver {here.packages['av']})" in verdict.found
    assert "tpn_ray's code 0" in verdict.found
    assert "constraints.txt" in verdict.remedy


def test_a_driver_that_cannot_name_the_packages_says_so() -> None:
    here = node.versions([])
    verdict = node.compare(here, here)
    assert (verdict.result, "packages were not compared" in verdict.found) == (WARN, True)
    assert "pip install" in verdict.remedy
    assert node.compare(dataclasses.replace(here, code="0"), here).result == FAIL


def test_shared_memory_must_hold_the_object_store() -> None:
    assert node.shared_memory(8 * GB, 4 * GB, 1).result == PASS
    small = node.shared_memory(64 * 2**20, 4 * GB, 1)
    assert (small.result, small.found) == (FAIL, "/dev/shm holds 0.0671 GB, the object store is 4 GB")
    assert "emptyDir" in small.remedy
    assert node.shared_memory(64 * 2**20, 4 * GB, 0).result == WARN
    assert node.look_at_memory(0, 0).result == PASS


def test_a_disk_must_have_room(tmp_path: Path) -> None:
    assert node.disk(50 * GB, 100 * GB, 10 * GB).result == PASS
    assert node.disk(15 * GB, 100 * GB, 10 * GB).result == WARN
    full = node.disk(5 * GB, 100 * GB, 0)
    assert full.result == FAIL
    assert "--temp-dir" in full.remedy
    assert node.look_at_disk(str(tmp_path), 0).result in (PASS, FAIL)


def test_the_decoder_is_compared_with_the_drivers() -> None:
    assert node.look_at_decoder(decoder_self_test().digest).result == PASS
    other = node.look_at_decoder("of another machine")
    assert other.result == FAIL
    assert "other pixels than on the driver" in other.found


def test_what_does_not_hold_is_named() -> None:
    whole = Confinement(**dict.fromkeys(LAYERS, True), landlock_abi=4)
    good = node.confinement_verdict(
        BreakoutOutcome(confinement=whole, outcomes={"fork": REFUSED, "read a file": REFUSED})
    )
    assert (good.result, good.remedy) == (PASS, "")
    assert good.found == "seccomp and Landlock 4; 2 attempts to break out of a decoding process were refused"
    partly = dataclasses.replace(whole, landlock=False, landlock_abi=0, why_not="landlock: Function not implemented")
    found = node.confinement_verdict(BreakoutOutcome(confinement=partly, outcomes={"fork": REFUSED}))
    assert (found.result, found.found) == (WARN, "without landlock (landlock: Function not implemented)")
    assert "RuntimeDefault" in found.remedy
    outcomes = dict.fromkeys(["fork", "read a file", "mount", "use bpf"], POSSIBLE)
    found = node.confinement_verdict(BreakoutOutcome(confinement=whole, outcomes=outcomes))
    assert found.result == WARN
    assert found.found == "code in a decoding process can fork, read a file, mount and 1 more"


@pytest.mark.skipif(sys.platform != "linux", reason="there is nothing to confine with")
def test_a_process_on_this_machine_is_confined() -> None:
    verdict = node.look_at_confinement()
    without_landlock = verdict.result == WARN and verdict.found.startswith("without landlock (landlock: ")
    assert verdict.result == PASS or (without_landlock and "can" not in verdict.found), verdict


def test_bf16_convolutions_are_tried() -> None:
    toy = ModelConfig(backbone="slowonly_toy", classes=5, alpha=(4, 8))
    assert node.convolutions(toy, (2, 3, 8, 32, 32), "cpu").result == PASS


@pytest.mark.parametrize(
    ("without", "with_token", "has_token", "result", "words"),
    [
        (401, 200, True, PASS, "refuses requests without the token"),
        (200, 200, True, FAIL, "answers without a token"),
        (200, None, False, FAIL, "runs anybody's code"),
        (401, None, False, FAIL, "there is none on the head"),
        (401, 403, True, FAIL, "refuses the token that is here"),
        (None, None, True, FAIL, "does not answer"),
    ],
)
def test_tokens(without: int | None, with_token: int | None, has_token: bool, result: str, words: str) -> None:
    verdict = node.token_verdict(without, with_token, has_token=has_token)
    assert verdict.result == result
    assert words in verdict.found
    assert bool(verdict.remedy) == (result == FAIL)


def test_where_a_token_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-the-file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from-the-variable")
    assert node.own_token() == "from-the-variable"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    assert node.own_token() == "from-the-file"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    assert node.own_token() == ""
    assert node.client_mode("token").result == PASS
    assert node.client_mode("").result == WARN


def ports(dashboard: str, gcs: str, nodes: int = 1, asks: bool = True) -> Verdict:
    return node.ports_verdict({"dashboard": [dashboard], "GCS": [gcs]}, nodes, asks)


def test_ports_that_others_reach_are_warned_of() -> None:
    assert ports("127.0.0.1", "::ffff:127.0.0.1").result == PASS
    both = ports("0.0.0.0", "::")
    assert (both.result, both.found) == (
        WARN,
        "dashboard on 0.0.0.0, GCS on ::: whoever reaches this machine reaches them",
    )
    assert "--dashboard-host 127.0.0.1" in both.remedy
    assert ports("127.0.0.1", "::", nodes=3).result == PASS
    assert ports("127.0.0.1", "::", nodes=3, asks=False).result == WARN
    assert node.ports_verdict({"dashboard": []}, 1, True).result == WARN


def test_gpus() -> None:
    assert node.uncounted_gpus(0).result in (NOT_HERE, WARN)
