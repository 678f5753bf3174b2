from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from jobs import plan
from tpn_ray.model.backbones import BACKBONES
from tpn_ray.model.recognizer import ModelConfig
from tpn_ray.planning import model_card
from tpn_ray.planning.model_card import cost, kept_bytes


def test_the_published_network_costs_what_was_counted_elsewhere() -> None:
    """91.5 M parameters, 100.6 GFLOP at 8 x 224 x 224: both known of mmaction2's code."""
    found = cost(ModelConfig(), frames=8, crop_px=224)
    assert (round(found.parameters / 1e6, 1), round(2 * found.gmacs, 1)) == (91.5, 100.6)


def test_what_is_kept_for_the_backward_pass() -> None:
    """A linear layer keeps its input, a ReLU its output; weights are not counted, and shared memory is counted once."""
    with torch.device("meta"):
        model, x = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5)), torch.empty(7, 10)
        assert kept_bytes(model, x) == 4 * 7 * (10 + 20)


def test_the_table_names_every_backbone_but_the_toys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    some = {name: BACKBONES[name] for name in ("slowonly_r50", "tsm_toy", "tsm_r50")}
    monkeypatch.setattr(model_card, "BACKBONES", some)
    monkeypatch.setattr(sys, "argv", ["plan.py", "--models"])
    monkeypatch.delenv("COLUMNS", raising=False)
    plan.main()
    printed = capsys.readouterr().out
    assert "slowonly_r50" in printed and "32.5 (91.5)" in printed and "75.6 % on Kinetics-400" in printed
    assert "tsm_r50" in printed and "toy " not in printed
