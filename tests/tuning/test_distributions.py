from __future__ import annotations

import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from tpn_ray.errors import ConfigError
from tpn_ray.tuning.distributions import Distribution, at, choice, grid, parse, written


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("choice(step, cosine)", choice(("step", "cosine"))),
        ("choice(top-down, both)", choice(("top-down", "both"))),
        ("choice(-1, None)", choice((-1, None))),
        ("choice((1, 2), (4, 8))", choice(((1, 2), (4, 8)))),
        ("choice(True, False)", choice((True, False))),
        ("uniform(0, 0.2)", FloatDistribution(0, 0.2)),
        ("loguniform(1e-4, 1)", FloatDistribution(1e-4, 1, log=True)),
        ("whole(1, 8)", IntDistribution(1, 8)),
    ],
)
def test_written_and_read(text: str, distribution: Distribution) -> None:
    assert parse(text) == distribution
    assert parse(written(distribution)) == distribution


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.1", r"'0.1' is not a distribution; write choice\(a, b\), uniform"),
        ("normal(0, 1)", "unknown distribution 'normal'"),
        ("uniform(1)", "uniform takes two numbers"),
        ("uniform(0, high)", "uniform takes two numbers"),
        ("uniform(2, 1)", r"'uniform\(2, 1\)': `low <= high` must hold, but got \(low=2, high=1\)"),
        ("uniform(0, high=1)", "is not a distribution"),
        ("uniform(0, 1", "is not a distribution"),
        ("loguniform(0, 1)", "`low > 0` must hold"),
        ("whole(1, 2.5)", "whole takes two whole numbers"),
        ("choice()", "one or more elements"),
    ],
)
def test_nonsense(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(text)


def test_draws_cover_the_range_and_stay_in_it() -> None:
    shares = [i / 1000 for i in range(1000)]
    assert {at(choice("abc"), share) for share in shares} == set("abc")
    assert {at(IntDistribution(2, 4), share) for share in shares} == {2, 3, 4}
    logs = [at(FloatDistribution(0.01, 1, log=True), share) for share in shares]
    assert min(logs) == 0.01
    assert max(logs) < 1
    assert sum(value < 0.1 for value in logs) == 500


def test_a_grid() -> None:
    assert grid(choice((1, 5)), 9) == [1, 5]
    assert grid(FloatDistribution(0, 1), 2) == [0.25, 0.75]
    assert grid(IntDistribution(1, 2), 5) == [1, 2]
