from __future__ import annotations

import pytest
import torch

from tpn_ray.errors import ConfigError
from tpn_ray.model.backbones import backbone_spec
from tpn_ray.model.recognizer import ModelConfig, build_model
from tpn_ray.recipe import LoopConfig, LossConfig, OptimConfig
from tpn_ray.training.optim import laid_out_like, learning_rate, make_optimizer
from tpn_ray.training.step import MicroBatch, Training

SPEC = backbone_spec("slowonly_toy")


def test_the_published_steps() -> None:
    rates = [learning_rate(OptimConfig(), epoch, 150, 150) for epoch in (0, 74, 75, 124, 125, 149)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001])


def test_warm_up_rises_to_the_rate_and_cosine_falls_to_nothing() -> None:
    config = OptimConfig(lr=1.0, schedule="cosine", warmup=0.1)
    rates = [learning_rate(config, step, 1000, 10) for step in range(1001)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[100] == pytest.approx(1.0)
    assert rates[:101] == sorted(rates[:101])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[1000] == pytest.approx(0.0)


def test_one_cycle_rises_then_falls() -> None:
    rates = [learning_rate(OptimConfig(lr=1.0, schedule="one_cycle"), step, 100, 10) for step in range(100)]
    assert max(rates) == rates[30] == pytest.approx(1.0)


def test_constant_stays() -> None:
    assert {learning_rate(OptimConfig(schedule="constant"), step, 9, 3) for step in range(9)} == {0.01}


def test_every_parameter_is_in_one_group() -> None:
    model = torch.nn.Sequential(torch.nn.Conv3d(3, 4, 1), torch.nn.BatchNorm3d(4))
    for on_all, decaying in ((True, 4), (False, 1)):
        optimizer = make_optimizer(OptimConfig(decay_norm_and_bias=on_all), model, SPEC)
        sizes = {group["weight_decay"]: len(group["params"]) for group in optimizer.param_groups}
        assert sizes[1e-4] == decaying
        assert sum(sizes.values()) == 4


def test_milestones_and_warm_up_in_epochs_are_those_in_shares() -> None:
    epochs = OptimConfig(milestones=(75, 125), warmup=3)
    shares = OptimConfig(milestones=(75 / 150, 125 / 150), warmup=3 / 150)
    rates = [[learning_rate(config, step, 3000, 150) for step in range(3000)] for config in (epochs, shares)]
    assert rates[0] == pytest.approx(rates[1])
    assert rates[0][1499] == pytest.approx(10 * rates[0][1500])


@pytest.mark.parametrize("config", [OptimConfig(schedule="constant"), OptimConfig(milestones=(3, 7))])
def test_rates_of_an_extended_run_are_those_of_a_longer_one(config: OptimConfig) -> None:
    """Bit for bit, where they follow the epochs and not the shares of the run."""
    short, long = ([learning_rate(config, step, 7 * epochs, epochs) for step in range(56)] for epochs in (8, 11))
    assert short == long


def two_parts() -> torch.nn.Module:
    backbone = torch.nn.Sequential(torch.nn.Conv3d(3, 4, 1), torch.nn.BatchNorm3d(4))
    return torch.nn.ModuleDict({"backbone": backbone, "head": torch.nn.Linear(4, 2)})


def test_frozen_parts_get_no_gradient_and_scaled_ones_their_own_rate() -> None:
    model = two_parts()
    optimizer = make_optimizer(OptimConfig(freeze=("backbone.0",), scales=("backbone=0.1", "head.bias=2")), model, SPEC)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == [
        *("backbone.0.weight", "backbone.0.bias")
    ]
    scales = {id(p): group["scale"] for group in optimizer.param_groups for p in group["params"]}
    trained = {name: scales[id(p)] for name, p in model.named_parameters() if id(p) in scales}
    assert trained == {"backbone.1.weight": 0.1, "backbone.1.bias": 0.1, "head.weight": 1.0, "head.bias": 2.0}


@pytest.mark.parametrize("fields", [{"freeze": ("backbon",)}, {"scales": ("neck=0.1",)}])
def test_a_part_that_the_network_has_not_is_refused(fields: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ConfigError, match=r"no part .*it has: backbone.0, backbone.1, head"):
        make_optimizer(OptimConfig(**fields), two_parts(), SPEC)  # type: ignore[arg-type]


def test_rates_fall_from_the_heads_to_the_stem() -> None:
    config = ModelConfig(backbone="slowonly_toy", classes=3, alpha=(1, 2))
    model = build_model(config)
    optim = OptimConfig(optimizer="adamw", layer_decay=0.5, scales=("backbone.stages.res4=4",), weight_decay=0.05)
    optimizer = make_optimizer(optim, model, config.spec)
    assert isinstance(optimizer, torch.optim.AdamW)
    scales = {id(p): group["scale"] for group in optimizer.param_groups for p in group["params"]}
    seen = {".".join(name.split(".")[:3]): scales[id(p)] for name, p in model.named_parameters()}
    heads = {scale for name, scale in seen.items() if not name.startswith("backbone")}
    assert heads == {1.0}
    assert seen["backbone.stages.res5"] == 0.5
    assert seen["backbone.stages.res4"] == 0.25 * 4
    assert seen["backbone.stages.res3"] == 0.125
    assert seen["backbone.stem.conv"] == 0.5 ** (len(config.spec.stages) + 1)


def test_something_must_be_left_to_train() -> None:
    with pytest.raises(ConfigError, match="leaves nothing"):
        make_optimizer(OptimConfig(freeze=("backbone", "head")), two_parts(), SPEC)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": 0.0}, "lr=0.0"),
        ({"schedule": "linear"}, "schedule='linear'"),
        ({"milestones": (0.9, 0.5)}, "milestones"),
        ({"momentum": 0.0}, "nesterov"),
        ({"warmup": -1.0}, "warmup=-1.0"),
        ({"milestones": (0.5, 75)}, "milestones"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
        ({"scales": ("backbone",)}, "scales='backbone'"),
        ({"scales": ("backbone=0",)}, "freeze it"),
        ({"optimizer": "adam"}, "optimizer='adam' must be sgd or adamw"),
        ({"optimizer": "adamw", "momentum": 0.8}, "momentum=0.8 is of sgd; the first of betas"),
        ({"betas": (0.9, 0.95)}, "are of adamw; set optimizer=adamw"),
        ({"optimizer": "adamw", "betas": (0.9, 1.0)}, "must be at least 0 and below 1"),
        ({"layer_decay": 0.0}, "layer_decay=0.0 must be above 0"),
    ],
)
def test_nonsense_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_tensors_of_an_older_run_are_laid_out_like_the_parameters(optimizer: str) -> None:
    """And gradients are, however they were added up: a fused optimizer goes through memory as it comes."""
    weight = torch.nn.Parameter(torch.randn(4, 6, 3, 3).to(memory_format=torch.channels_last))
    other = torch.randn(4, 6, 3, 3)
    found = laid_out_like(other, weight)
    assert torch.equal(found, other)
    assert found.stride() == weight.stride() != other.stride()
    assert laid_out_like(found, weight) is found
    point = torch.randn(4, 6, 1, 1)
    assert laid_out_like(point, point.to(memory_format=torch.channels_last)) is point
    model = ModelConfig(backbone="slowonly_toy", classes=5, alpha=(1, 2))
    loop = LoopConfig(epochs=1, batch_clips=4, micro_batch_clips=2, ordered_reduction=True)
    training = Training(model, LossConfig(), OptimConfig(optimizer=optimizer), loop, "cpu")  # type: ignore[arg-type]
    labels = torch.zeros(2, 1, dtype=torch.long)
    clips = torch.randint(256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    training.train_step([MicroBatch(i, clips, labels) for i in range(2)], 2)
    weights, rest = training.state()
    for state in rest["optimizer"]["state"].values():
        for name, value in state.items():
            state[name] = value.contiguous() if isinstance(value, torch.Tensor) else value
    training.load(weights, rest, 1)
    for parameter in training.trained:
        assert parameter.grad is not None
        others = [parameter.grad, *(value for value in training.optimizer.state[parameter].values() if value.ndim)]
        assert all(laid_out_like(one, parameter) is one for one in others)


def test_a_fused_step_is_the_step_of_one_parameter_after_the_other() -> None:
    def trained(fused: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = make_optimizer(OptimConfig(lr=0.1), model, SPEC)
        for group in optimizer.param_groups:
            group.update({} if fused else {"fused": False, "foreach": False})
        for _ in range(3):
            optimizer.zero_grad()
            torch.autograd.backward(model(torch.randn(2, 4, 8, 8)).square().mean())
            optimizer.step()
        return list(model.parameters())

    assert all(torch.equal(one, other) for one, other in zip(trained(True), trained(False), strict=True))
