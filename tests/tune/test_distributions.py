from __future__ import annotations

import pytest

from tpn_ray.errors import ConfigError
from tpn_ray.tune.distributions import Choice, Uniform, Whole, parse


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("choice(step, cosine)", Choice(("step", "cosine"))),
        ("choice((1, 2), (4, 8))", Choice(((1, 2), (4, 8)))),
        ("choice(True, False)", Choice((True, False))),
        ("uniform(0, 0.2)", Uniform(0, 0.2)),
        ("loguniform(1e-4, 1)", Uniform(1e-4, 1, log=True)),
        ("whole(1, 8)", Whole(1, 8)),
    ],
)
def test_written_and_read(text: str, distribution: Choice | Uniform | Whole) -> None:
    assert parse(text) == distribution
    assert parse(str(distribution)) == distribution


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.1", r"'0.1' is no distribution; write choice\(a, b\), uniform"),
        ("normal(0, 1)", "unknown distribution 'normal'"),
        ("uniform(1)", "uniform takes two numbers"),
        ("uniform(0, high)", "uniform takes two numbers"),
        ("uniform(2, 1)", r"uniform\(2, 1\): the first number must be below the second"),
        ("loguniform(0, 1)", "must begin above 0"),
        ("whole(1, 2.5)", "both whole"),
        ("choice()", "at least one value"),
    ],
)
def test_nonsense(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(text)


def test_draws_cover_the_range_and_stay_in_it() -> None:
    shares = [i / 1000 for i in range(1000)]
    assert {Choice("abc").at(share) for share in shares} == set("abc")
    assert {Whole(2, 4).at(share) for share in shares} == {2, 3, 4}
    logs = [Uniform(0.01, 1, log=True).at(share) for share in shares]
    assert min(logs) == 0.01
    assert max(logs) < 1
    assert sum(value < 0.1 for value in logs) == 500


def test_a_grid() -> None:
    assert Choice((1, 5)).grid(9) == [1, 5]
    assert Uniform(0, 1).grid(2) == [0.25, 0.75]
    assert Whole(1, 2).grid(5) == [1, 2]
