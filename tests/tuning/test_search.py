from __future__ import annotations

import pytest
from optuna.distributions import FloatDistribution

from tpn_ray.errors import ConfigError
from tpn_ray.tuning.distributions import choice
from tpn_ray.tuning.search import FIRST_BY_CHANCE, Question, Seen, grid, random, suggest, tpe
from tpn_ray.tuning.space import Sample

SPACE = {"x": FloatDistribution(0, 1), "kind": choice(((1, 2), (4, 8)))}


def always(sample: Sample) -> bool:
    return True


def question(first: int = 0, count: int = 4, seed: int = 0, seen: list[Seen] | None = None) -> Question:
    return Question(space=SPACE, is_valid=always, seen=seen or [], first=first, count=count, seed=seed)


def seen(epoch: int, trials: int, objectives: int = 1) -> list[Seen]:
    """Scores that are best at x = 0.8 with the second kind, and whose lists are as stored."""
    samples = random(question(count=trials))
    stored = [{"x": sample["x"], "kind": list(sample["kind"])} for sample in samples]
    return [
        Seen(sample=s, epoch=epoch, scores=(-abs(s["x"] - 0.8) - (s["kind"] == [1, 2]), -s["x"])[:objectives])
        for s in stored
    ]


def test_random_samples_belong_to_their_number() -> None:
    assert random(question(0, 6))[2:] == random(question(2, 4))
    assert random(question(seed=1)) != random(question())
    assert random(question(seen=seen(1, 20))) == random(question())


def test_a_grid_is_every_valid_combination_once() -> None:
    assert grid(question(count=99)) == [{"x": x, "kind": k} for x in (1 / 6, 0.5, 5 / 6) for k in ((1, 2), (4, 8))]
    assert grid(question(first=4, count=99)) == grid(question(count=99))[4:]
    small = Question(space=SPACE, is_valid=lambda sample: sample["x"] < 0.4, seen=[], first=0, count=9, seed=0)
    assert [sample["kind"] for sample in grid(small)] == [(1, 2), (4, 8)]


def test_tpe_is_a_function_of_what_it_saw_and_comes_near_the_best() -> None:
    known = seen(9, 40)
    first = tpe(question(first=40, count=8, seen=known))
    assert first == tpe(question(first=40, count=8, seen=known))
    assert sum(sample["kind"] == (4, 8) for sample in first) >= 6
    assert sum(abs(sample["x"] - 0.8) < 0.25 for sample in first) >= 6


def test_tpe_begins_by_chance_and_takes_the_furthest_epoch_that_enough_reached() -> None:
    few = seen(9, FIRST_BY_CHANCE - 1)
    assert tpe(question(seen=few)) == random(question())
    early = seen(1, 40)
    assert tpe(question(seen=few + early)) == tpe(question(seen=early))
    enough = seen(9, FIRST_BY_CHANCE)
    assert tpe(question(seen=enough + early)) == tpe(question(seen=enough))


def test_two_objectives() -> None:
    found = tpe(question(first=40, count=8, seen=seen(9, 40, objectives=2)))
    assert all(0 <= sample["x"] <= 1 for sample in found)
    assert sum(sample["kind"] == (4, 8) for sample in found) >= 6


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown searcher 'best'; known: random, grid, tpe"):
        suggest("best", question())
    never = Question(space=SPACE, is_valid=lambda sample: False, seen=[], first=0, count=1, seed=0)
    for name in ("random", "tpe"):
        with pytest.raises(ConfigError, match="1000 samples of the space in a row"):
            suggest(name, never)
    with pytest.raises(ConfigError, match="1000 samples of the space in a row"):
        tpe(Question(space=SPACE, is_valid=lambda s: False, seen=seen(9, 20), first=20, count=1, seed=0))
