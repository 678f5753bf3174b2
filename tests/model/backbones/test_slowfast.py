from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from tests.model.backbones.comparison import check
from tpn_ray.model.backbones import BACKBONES
from tpn_ray.model.backbones.slowfast import SPECS, SlowFast, together
from tpn_ray.model.recognizer import ModelConfig, build_model
from tpn_ray.model.weights import load_weights, mmaction2_state


def both_paths(backbone: torch.nn.Module, clips: torch.Tensor) -> Sequence[torch.Tensor]:
    return backbone.paths(clips)[5]  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize(
    ("name", "case"), [("slowfast_r50_4x16", "slowfast_r50"), ("slowfast_r50_8x8", "slowfast_r50_8x8")]
)
def test_features_of_both_paths_are_the_published(name: str, case: str) -> None:
    check(name, case, outputs=both_paths)


def toy() -> SlowFast:
    torch.manual_seed(0)
    backbone = BACKBONES["slowfast_toy"].build(5)
    assert isinstance(backbone, SlowFast)
    return backbone.eval()


def test_the_mean_of_the_top_stage_is_what_the_published_head_classifies() -> None:
    net, clips = toy(), torch.randn(2, 3, 16, 32, 32)
    slow, fast = net.paths(clips)[5]
    means = torch.cat((fast.mean(dim=(2, 3, 4)), slow.mean(dim=(2, 3, 4))), dim=1)
    torch.testing.assert_close(net(clips)[5].mean(dim=(2, 3, 4)), means)


def test_frames_of_the_fast_path_are_averaged_in_equal_windows() -> None:
    slow, fast = torch.zeros(1, 2, 2, 1, 1), torch.tensor([1.0, 2, 3, 6, 7, 8]).view(1, 1, 6, 1, 1)
    assert together(slow, fast)[0, :, :, 0, 0].tolist() == [[2, 7], [0, 0], [0, 0]]


def test_the_slow_path_sees_every_fourth_frame() -> None:
    net, clips = toy(), torch.randn(1, 3, 8, 32, 32)
    with torch.no_grad():
        for layer in net.laterals.values():
            layer.conv.weight.zero_()  # type: ignore[operator, union-attr]
    changed = clips.clone()
    changed[:, :, [1, 2, 3, 5, 6, 7]] += 1
    (slow, fast), (other_slow, other_fast) = net.paths(clips)[5], net.paths(changed)[5]
    assert torch.equal(slow, other_slow)
    assert not torch.allclose(fast, other_fast)


@pytest.mark.parametrize(
    ("name", "kernel", "frames", "blocks", "parameters"),
    [
        ("slowfast_r50_4x16", 5, 8, (6, 6), 33_557_288),
        ("slowfast_r101_r50_4x16", 5, 8, (23, 6), None),
        ("slowfast_r101_8x8", 7, 4, (23, 23), None),
    ],
)
def test_numbers_of_the_published_configs(name, kernel, frames, blocks, parameters) -> None:  # type: ignore[no-untyped-def]
    with torch.device("meta"):
        net = SPECS[name].build(5)
    assert isinstance(net, SlowFast)
    assert {tuple(layer.conv.kernel_size) for layer in net.laterals.values()} == {(kernel, 1)}  # type: ignore[union-attr]
    assert (len(net.slow.stages["res4"]), len(net.fast.stages["res4"])) == blocks  # type: ignore[arg-type]
    assert SPECS[name].stages[5].time == SPECS[name].frames_multiple == frames
    assert parameters in (None, sum(p.numel() for p in net.parameters()))


def test_a_lower_pyramid_loads_a_whole_file() -> None:
    whole = build_model(ModelConfig(backbone="slowfast_toy", classes=3, neck="none"))
    lower = build_model(ModelConfig(backbone="slowfast_toy", classes=3, levels=(3, 4), alpha=(1, 2)))
    report = load_weights(lower, mmaction2_state(whole), backbone_only=True)
    assert "backbone.slow_path.layer3_lateral.conv.weight" in report.unused
    assert not any(key.startswith("backbone.") for key in report.missing)


def test_non_local_blocks_are_in_the_slow_path_only() -> None:
    with torch.device("meta"):
        net = SPECS["slowfast_r50_4x16_nl"].build(5)
    places = {key.split(".attention")[0] for key in net.state_dict() if ".attention." in key}
    assert places == {f"slow.stages.{place}" for place in ("res3.1", "res3.3", "res4.1", "res4.3", "res4.5")}
