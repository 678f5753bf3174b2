from __future__ import annotations

import pytest
import torch

from tpn_ray.errors import ConfigError
from tpn_ray.train.optim import OptimConfig, learning_rate, make_optimizer


def test_the_published_steps() -> None:
    rates = [learning_rate(OptimConfig(), epoch, 150) for epoch in (0, 74, 75, 124, 125, 149)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001])


def test_warm_up_rises_to_the_rate_and_cosine_falls_to_nothing() -> None:
    config = OptimConfig(lr=1.0, schedule="cosine", warmup=0.1)
    rates = [learning_rate(config, step, 1000) for step in range(1001)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[100] == pytest.approx(1.0)
    assert rates[:101] == sorted(rates[:101])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[1000] == pytest.approx(0.0)


def test_one_cycle_rises_then_falls() -> None:
    rates = [learning_rate(OptimConfig(lr=1.0, schedule="one_cycle"), step, 100) for step in range(100)]
    assert max(rates) == rates[30] == pytest.approx(1.0)


def test_constant_stays() -> None:
    assert {learning_rate(OptimConfig(schedule="constant"), step, 9) for step in range(9)} == {0.01}


def test_every_parameter_is_in_one_group() -> None:
    model = torch.nn.Sequential(torch.nn.Conv3d(3, 4, 1), torch.nn.BatchNorm3d(4))
    for on_all, decaying in ((True, 4), (False, 1)):
        optimizer = make_optimizer(OptimConfig(decay_norm_and_bias=on_all), model)
        sizes = {group["weight_decay"]: len(group["params"]) for group in optimizer.param_groups}
        assert sizes[1e-4] == decaying
        assert sum(sizes.values()) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": 0.0}, "lr=0.0"),
        ({"schedule": "linear"}, "schedule='linear'"),
        ({"milestones": (0.9, 0.5)}, "milestones"),
        ({"momentum": 0.0}, "nesterov"),
        ({"warmup": 1.0}, "warmup=1.0"),
    ],
)
def test_nonsense_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**fields)  # type: ignore[arg-type]
