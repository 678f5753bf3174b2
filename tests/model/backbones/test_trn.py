from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.backbones.published import clips, drawn, names_of, recording
from tpn_ray.errors import CheckpointError, ConfigError
from tpn_ray.model.backbones import trn
from tpn_ray.model.backbones.trn import RelationHead
from tpn_ray.model.recognizer import ModelConfig, build_model
from tpn_ray.model.weights import load_weights, save_mmaction2

TOY = ModelConfig(backbone="trn_toy", classes=3, alpha=(1, 1))


@pytest.fixture
def first_relations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trn.torch, "randperm", lambda count, device: torch.arange(count, device=device))


def published_head(recorded: dict[str, Any]) -> RelationHead:
    head = RelationHead(2048, 10, 0.0).double()
    assert sum(p.numel() for p in head.parameters()) == recorded["parameters"]
    assert [list(p.shape) for p in head.state_dict().values()] == list(recorded["keys"].values())
    values = (drawn(key, tuple(shape)) for key, shape in recorded["keys"].items())
    head.load_state_dict(dict(zip(head.state_dict(), values, strict=True)))
    return head


@pytest.mark.usefixtures("first_relations")
def test_scores_are_the_published_codes() -> None:
    recorded = recording("trn_head")
    expected = torch.tensor(recorded["scores"], dtype=torch.float64)
    head = published_head(recorded)
    torch.testing.assert_close(head(clips(recorded)), expected, rtol=0, atol=1e-9)
    scores = head.float()(clips(recorded, torch.float32))
    torch.testing.assert_close(scores, expected.float(), rtol=0, atol=1e-4)


def test_evaluation_gives_the_mean_over_all_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    head, features = RelationHead(16, 3, 0.0, width=8).double(), torch.randn(2, 16, 8, 2, 2, dtype=torch.float64)
    total = torch.zeros(2, 3, dtype=torch.float64)
    # Rotated by each of these, every relation of every scale (1, 8, 28, 56, 70) is chosen equally often.
    rotations = range(280 * 2)
    with torch.no_grad():
        for rotation in rotations:
            monkeypatch.setattr(trn.torch, "randperm", lambda count, device, by=rotation: torch.arange(count).roll(by))
            total += head(features)
        torch.testing.assert_close(head.eval()(features), total / len(rotations))


def test_names_are_mmaction2s_and_those_of_the_first_code() -> None:
    mmaction2, first = names_of("trn_r50", "mmaction2"), names_of("trn_r50", "trn_pytorch")
    assert set(recording("trn_head")["keys"]) <= set(mmaction2)
    assert mmaction2["backbone.layer4.2.conv3.conv.weight"][:2] == (2048, 512)
    assert {
        "base_model.conv1.weight",
        "base_model.bn1.running_mean",
        "base_model.layer1.0.downsample.1.weight",
        "base_model.layer4.2.bn3.num_batches_tracked",
        "new_fc.weight",
        "consensus.fc_fusion_scales.0.1.weight",
        "consensus.fc_fusion_scales.6.3.bias",
    } <= set(first)
    assert len(first) == len(mmaction2)
    with torch.device("meta"):
        model = build_model(ModelConfig(backbone="trn_r50", neck="none", classes=174))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 26.64  # as mmaction2 says


@pytest.mark.parametrize("neck", ["tpn", "none"])
def test_weights_return_from_mmaction2s_layout(neck: Any, tmp_path: Path) -> None:
    config = ModelConfig(backbone="trn_toy", classes=3, alpha=(1, 1), neck=neck)
    one, other = build_model(config).eval(), build_model(config).eval()
    save_mmaction2(one, f"{tmp_path}/weights.pth")
    report = load_weights(other, f"{tmp_path}/weights.pth")
    assert (report.layout, report.unused, report.missing) == ("mmaction2", (), ())
    x = torch.randn(2, 3, 8, 32, 32)
    assert torch.equal(one(x).action, other(x).action)


def test_every_scales_last_layer_is_a_classifier(tmp_path: Path) -> None:
    save_mmaction2(build_model(TOY), f"{tmp_path}/weights.pth")
    other = build_model(ModelConfig(backbone="trn_toy", classes=5, alpha=(1, 1)))
    with pytest.raises(CheckpointError, match="another number of classes"):
        load_weights(other, f"{tmp_path}/weights.pth")
    report = load_weights(other, f"{tmp_path}/weights.pth", replace_classifier=True)
    assert len([name for name in report.replaced if name.startswith("head.relations.")]) == 14


@pytest.mark.parametrize(("neck", "frames", "alpha"), [("none", 8, (1, 1)), ("none", 16, (1, 1)), ("tpn", 16, (1, 2))])
def test_a_training_step(neck: Any, frames: int, alpha: tuple[int, int]) -> None:
    model = build_model(ModelConfig(backbone="trn_toy", classes=3, neck=neck, alpha=alpha))
    scores = model(torch.randn(2, 3, frames, 48, 48))
    sum(part.square().mean() for part in (scores.action, *scores.auxiliary)).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_an_alpha_that_leaves_too_few_frames_is_refused() -> None:
    model = build_model(ModelConfig(backbone="trn_toy", classes=3, alpha=(1, 2)))
    with pytest.raises(ConfigError, match="trn relates 8 frames, and 4 reach its head: .*alpha that keeps them"):
        model(torch.zeros(1, 3, 8, 32, 32))
    with pytest.raises(ConfigError, match="clips of 12 frames: trn_toy needs at least 8, in multiples of 8"):
        model(torch.zeros(1, 3, 12, 32, 32))


def test_the_order_of_frames_matters() -> None:
    model = build_model(ModelConfig(backbone="trn_toy", classes=3, neck="none")).eval()
    torch.nn.init.normal_(model.head.frame.weight)
    x = torch.randn(1, 3, 8, 32, 32)
    assert not torch.allclose(model(x).action, model(x.flip(2)).action)
    assert torch.equal(model(x).action, model(x).action)
