"""The script for a GPU, on a CPU: every section runs, and a fault is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import device, device_bits
from benchmarks.device_bench import Bench
from benchmarks.plain_network import plain_copy
from tpn_ray.model.recognizer import ModelConfig, build_model


def test_every_section_runs_and_nothing_fails(tmp_path: Path) -> None:
    command = [sys.executable, "jobs/device.py", "--device", "cpu", "--small", "--out", f"{tmp_path}/device.json"]
    done = subprocess.run(command, check=False, cwd=device.ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failed checks" in done.stdout
    written = json.loads((tmp_path / "device.json").read_text())
    assert (written["device"], written["small"], written["failed"]) == ("cpu", True, [])
    assert list(dict.fromkeys(check["section"] for check in written["checks"])) == list(device.LIMITS_SECONDS)
    passed = {check["name"] for check in written["checks"] if check["passed"]}
    assert {"fp32 eager, resumed", "pixels unlike the CPU's"} <= passed
    assert list(tmp_path.iterdir()) == [tmp_path / "device.json"]


def checks_of(bench: Bench) -> dict[str, bool | None]:
    lines = [json.loads(line) for line in bench.results.read_text().splitlines()]
    return {line["name"]: line["passed"] for line in lines}


def test_one_changed_weight_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("bits", "cpu", tmp_path / "results", small=True)
    load = device_bits.Training.load

    def faulty(training: device_bits.Training, *state: object) -> None:
        load(training, *state)  # type: ignore[arg-type]
        with torch.no_grad():
            next(training.model.parameters())[0, 0, 0, 0] += 1e-6

    monkeypatch.setattr(device_bits.Training, "load", faulty)
    device_bits.bits(bench)
    assert checks_of(bench) == {
        "fp32 eager, killed after three steps": True,
        "fp32 eager, resumed": False,
    }


def test_a_section_that_fails_or_overruns_is_a_failed_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "SMALL_SECONDS", 0.2)
    out = tmp_path / "device.json"
    checks = list(device.run(["develop"], "cpu", out, small=True))
    assert [(one.name, one.value, one.passed) for one in checks[:1]] == [
        ("runs to its end", "took more than 0.2 s", False)
    ]
    monkeypatch.setattr(device, "SMALL_SECONDS", 60)
    checks = list(device.run(["develop"], "nonsense", out, small=True))
    assert checks[0].passed is False and "ended with status 1" in checks[0].value
    assert json.loads(out.read_text())["failed"] == ["develop: runs to its end"]
    assert "FAIL develop" in device.as_line(checks[0])


def test_the_plain_network_computes_the_same() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(classes=7, dropout=0.0)).train()
    clips = torch.randn(2, 3, 8, 64, 64)
    ours, (scores, auxiliary) = model(clips), plain_copy(model).train()(clips)
    for mine, plain in ((ours.action, scores), (ours.auxiliary[0], auxiliary)):
        assert (mine - plain).abs().max() < 1e-3 * plain.abs().max()
