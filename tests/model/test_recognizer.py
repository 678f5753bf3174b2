from __future__ import annotations

from dataclasses import replace
from typing import Any

import jaxtyping
import pytest
import torch
import tyro
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tpn_ray.errors import ConfigError
from tpn_ray.model.backbones import BACKBONES
from tpn_ray.model.recognizer import ModelConfig, build_model, set_alpha, split_label_sets

TOY = ModelConfig(backbone="slowonly_toy", classes=7, alpha=(4, 8))


def parameters(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(config).parameters())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ModelConfig(), 91_498_336),
        (ModelConfig(auxiliary_heads=False), 71_800_272),
        (ModelConfig(backbone="slowonly_r101"), 119_403_360),
        (ModelConfig(backbone="tsm_r50", classes=174), 82_445_724),
        (ModelConfig(neck="none"), 32_454_096),
    ],
)
def test_parameters_are_the_published_number(config: ModelConfig, expected: int) -> None:
    assert parameters(config) == expected


@pytest.mark.parametrize(
    ("config", "frames", "size", "expected"),
    [
        (ModelConfig(neck="none"), 8, 224, 41.74),
        (ModelConfig(neck="none"), 8, 256, 54.5),
        (ModelConfig(backbone="slowonly_r101", neck="none"), 8, 224, 85.41),
        (ModelConfig(), 8, 224, 50.28),
        (ModelConfig(), 8, 256, 65.67),
        (ModelConfig(alpha=(4, 8)), 8, 224, 50.43),
        (ModelConfig(alpha=(16, 32)), 32, 224, 198.31),
        (ModelConfig(backbone="slowonly_r101", alpha=(4, 8)), 8, 224, 94.10),
        (ModelConfig(backbone="tsm_r50", classes=174), 8, 224, 41.23),
    ],
)
def test_multiplications_per_view_are_the_published_number(
    config: ModelConfig, frames: int, size: int, expected: float
) -> None:
    with torch.device("meta"):
        model = build_model(config).eval()
        clips = torch.empty(1, 3, frames, size, size)
    with FlopCounterMode(display=False) as counter:
        model(clips)
    assert counter.get_total_flops() / 2e9 == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name.endswith("toy")])
def test_training_gives_auxiliary_scores_and_evaluation_none(backbone: str) -> None:
    model = build_model(replace(TOY, backbone=backbone, alpha=(1, 1)))
    clips = torch.randn(2, 3, 16, 32, 32)
    training = model(clips)
    assert training.action.shape == (2, 7)
    assert [scores.shape for scores in training.auxiliary] == [(2, 7)]
    evaluation = model.eval()(clips)
    assert type(evaluation) is type(training)
    assert evaluation.auxiliary == ()


def test_auxiliary_heads_cost_nothing_in_evaluation() -> None:
    with torch.device("meta"):
        models = [build_model(replace(TOY, auxiliary_heads=on)).eval() for on in (True, False)]
        clips = torch.empty(1, 3, 8, 32, 32)
    counts = []
    for model in models:
        with FlopCounterMode(display=False) as counter:
            model(clips)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 1),
        ({"auxiliary_heads": False}, 0),
        ({"neck": "none"}, 0),
        ({"levels": (2, 3, 4, 5), "alpha": (1, 2, 4, 8)}, 3),
        ({"levels": (5,), "rates": (1, 2, 4), "alpha": (1, 1, 1)}, 0),
    ],
)
def test_auxiliary_count_is_the_number_of_heads(changes: dict[str, Any], count: int) -> None:
    config = replace(TOY, **changes)
    assert config.auxiliary_count == count
    assert len(build_model(config)(torch.randn(2, 3, 8, 32, 32)).auxiliary) == count


def test_forward_does_not_change_clips_or_weights() -> None:
    model = build_model(TOY)
    clips = torch.randn(2, 3, 8, 32, 32).contiguous(memory_format=torch.channels_last_3d)
    before, names = clips.clone(), list(model.state_dict())
    weights = [p.clone() for p in model.parameters()]
    model(clips)
    assert torch.equal(clips, before)
    assert list(model.state_dict()) == names
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))


def test_the_memory_order_of_clips_does_not_matter() -> None:
    model = build_model(TOY).eval()
    clips = torch.randn(2, 3, 8, 32, 32)
    assert torch.equal(model(clips).action, model(clips.contiguous(memory_format=torch.channels_last_3d)).action)


def test_training_twice_gives_the_same_weights_bit_for_bit() -> None:
    def train() -> list[torch.Tensor]:
        torch.manual_seed(3)
        model = build_model(TOY)
        optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True)
        for _ in range(2):
            scores = model(torch.randn(2, 3, 8, 32, 32))
            loss = sum(F.cross_entropy(part, torch.tensor([1, 2])) for part in (scores.action, *scores.auxiliary))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return [p.detach() for p in model.parameters()]

    torch.use_deterministic_algorithms(True)
    try:
        first, second = train(), train()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_another_alpha_on_a_built_network_equals_a_network_built_with_it() -> None:
    model, other = build_model(TOY).eval(), build_model(replace(TOY, alpha=(2, 2))).eval()
    other.load_state_dict(model.state_dict())
    clips = torch.randn(1, 3, 8, 32, 32)
    before = model(clips).action
    set_alpha(model, (2, 2))
    assert model.config.alpha == (2, 2)
    assert torch.equal(model(clips).action, other(clips).action)
    assert not torch.equal(model(clips).action, before)
    with pytest.raises(ValueError, match=r"alpha=\(2,\)"):
        set_alpha(model, (2,))
    with pytest.raises(ConfigError, match="no pyramid"):
        set_alpha(build_model(replace(TOY, neck="none")), (2, 2))


def test_several_label_sets_share_one_layer() -> None:
    config = replace(TOY, classes=(3, 4))
    scores = build_model(config)(torch.randn(2, 3, 8, 32, 32)).action
    verbs, nouns = split_label_sets(scores, config.classes)
    assert (verbs.shape, nouns.shape) == ((2, 3), (2, 4))
    assert torch.equal(torch.cat((verbs, nouns), 1), scores)
    with pytest.raises(ValueError, match="7 scores cannot be split"):
        split_label_sets(scores, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet"}, "unknown backbone 'resnet'; nearest: .*plan.py --models"),
        ({"backbone": "slow_only_r50"}, "unknown backbone .*; nearest: slowonly_r50, "),
        ({"classes": 0}, "classes=0"),
        ({"classes": ()}, r"classes=\(\)"),
        ({"neck": "fpn"}, "neck='fpn'"),
        ({"flow": "sideways"}, "unknown flow 'sideways'; known: isolation"),
        ({"levels": (4, 6)}, r"levels=\(4, 6\)"),
        ({"levels": (5, 4)}, "lowest first"),
        ({"levels": ()}, r"levels=\(\)"),
        ({"levels": (5,), "alpha": (8,)}, "is not a pyramid"),
        ({"rates": (1, 2)}, "one stage in levels"),
        ({"levels": (5,), "rates": (2, 1)}, r"rates=\(2, 1\)"),
        ({"levels": (5,), "rates": (0, 1)}, r"rates=\(0, 1\)"),
        ({"alpha": (8,)}, "1 entries, the pyramid has 2 levels"),
        ({"alpha": (0, 8)}, r"alpha=\(0, 8\)"),
        ({"alpha": (2.5, 5)}, r"alpha=\(2.5, 5\) must be whole numbers"),
        ({"alpha": (8, 4)}, "multiple of the one before"),
        ({"alpha": (3, 8)}, "multiple of the one before"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"shift": "both"}, "shift='both'"),
        ({"shift": "inplace"}, "slowonly_toy shifts nothing"),
    ],
)
def test_nonsense_is_refused_with_the_value(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        jaxtyping.config, "jaxtyping_disable", True
    )  # users' configs are not checked by the tests' hook
    with pytest.raises(ValueError, match=message) as error:
        replace(TOY, **changes)
    assert isinstance(error.value, ConfigError)


def test_clips_that_do_not_fit_are_refused() -> None:
    model = build_model(TOY)
    with pytest.raises(ValueError, match="the 3 channels, it is 1"):
        model(torch.zeros(1, 1, 8, 32, 32))
    with pytest.raises(ValueError, match="clips of 0 frames are too short"):
        model(torch.zeros(1, 3, 0, 32, 32))
    single = build_model(replace(TOY, levels=(5,), rates=(1, 8), alpha=(1, 1)))
    with pytest.raises(ValueError, match=r"clips of 4 frames are too short: .* at least 8"):
        single(torch.zeros(1, 3, 4, 32, 32))


def test_the_config_is_a_command_line() -> None:
    arguments = "--backbone tsm_r50 --classes 97 300 --alpha 4 8 --levels 3 5 --no-auxiliary-heads --shift inplace"
    config = tyro.cli(ModelConfig, args=arguments.split())
    expected = ModelConfig(
        backbone="tsm_r50", classes=(97, 300), alpha=(4, 8), levels=(3, 5), auxiliary_heads=False, shift="inplace"
    )
    assert config == expected
    assert tyro.cli(ModelConfig, args=["--classes", "174"]).classes == 174


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name.endswith("_toy")])
def test_the_first_convolutions_take_the_channels_of_the_clips(backbone: str) -> None:
    config = ModelConfig(backbone=backbone, classes=7, neck="none", in_channels=10)
    with torch.device("meta"):
        model, rgb = build_model(config), build_model(replace(config, in_channels=3))
    shapes = {name: weight.shape for name, weight in rgb.named_parameters()}
    changed = [name for name, weight in model.named_parameters() if weight.shape != shapes[name]]
    assert len(changed) == (2 if "slowfast" in backbone else 1)
    with pytest.raises(ConfigError, match="dimension 1 must be the 10 channels, it is 3"):
        model(torch.empty(2, 3, 16, 64, 64, device="meta"))
