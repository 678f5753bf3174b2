from __future__ import annotations

import dataclasses

import pytest

from tpn_ray.errors import ConfigError
from tpn_ray.tuning.journal import Point, Trial
from tpn_ray.tuning.rungs import Bracket, best, bracket, due, frontier, may_suggest, planned, ranked, visible

BRACKET = Bracket(epochs=(1, 3), reduction_factor=2)


def trial(number: int, *tops: float, wave: int = 0, failure: str = "") -> Trial:
    """With these accuracies at epochs 1, 3 ..."""
    points = tuple(
        Point(epoch=epoch, scores={"val_top1": top, "val_loss": 1 - top}, checkpoint="c")
        for epoch, top in zip((1, 3), tops, strict=False)
    )
    return Trial(number=number, sample={"x": number}, wave=wave, points=points, failure=failure)


def top1(trial: Trial, epoch: int) -> tuple[float, ...]:
    point = trial.at(epoch)
    return (point.score if point else -1.0,)


def numbers(trials: list[Trial]) -> list[int]:
    return [trial.number for trial in trials]


def test_rungs_are_shares_of_the_run() -> None:
    assert bracket(150, rungs=3, reduction_factor=3).epochs == (17, 50, 150)
    assert bracket(10, rungs=3, reduction_factor=3).epochs == (2, 4, 10)
    assert bracket(2, rungs=5, reduction_factor=3).epochs == (1, 2)
    assert bracket(9, rungs=1, reduction_factor=3).epochs == (9,)


@pytest.mark.parametrize(("rungs", "reduction_factor"), [(0, 3), (2, 1)])
def test_nonsense(rungs: int, reduction_factor: int) -> None:
    with pytest.raises(ConfigError, match=f"rungs={rungs}|reduction_factor={reduction_factor}"):
        bracket(9, rungs=rungs, reduction_factor=reduction_factor)
    with pytest.raises(ConfigError, match="must be ascending"):
        Bracket(epochs=(3, 1))


def test_nobody_goes_on_before_all_were_compared() -> None:
    trials = [trial(0, 0.9), trial(1, 0.1), trial(2), trial(3, 0.5)]
    assert [(one.trial.number, one.epoch) for one in due(trials, BRACKET, top1)] == [(2, 1)]
    trials[2] = trial(2, 0.7)
    assert [(one.trial.number, one.epoch) for one in due(trials, BRACKET, top1)] == [(0, 3), (2, 3)]
    trials[0], trials[2] = trial(0, 0.9, 0.9), trial(2, 0.7, 0.95)
    assert due(trials, BRACKET, top1) == []
    assert numbers(ranked(trials)) == [2, 0, 3, 1]


def test_a_failed_trial_is_not_waited_for() -> None:
    trials = [trial(0, 0.9), trial(1, failure="nan"), trial(2, 0.2), trial(3, 0.1, failure="lost")]
    assert [(one.trial.number, one.epoch) for one in due(trials, BRACKET, top1)] == [(0, 3), (2, 3)]
    assert numbers(ranked(trials)) == [0, 2, 3, 1]


def test_one_goes_on_however_few_there_are() -> None:
    assert frontier([trial(0, 0.3)], BRACKET, top1) == (1, [trial(0, 0.3)])
    assert frontier([trial(0, 0.3, 0.3)], BRACKET, top1) == (2, [])


def test_equal_accuracies_are_ordered_by_loss_then_number() -> None:
    trials = [trial(0, 0.5), trial(1, 0.5), trial(2, 0.5)]
    lower = dataclasses.replace(trials[2].points[0], scores={"val_top1": 0.5, "val_loss": 0.1})
    trials[2] = dataclasses.replace(trials[2], points=(lower,))
    assert numbers(best(trials, 1, 3, top1)) == [2, 0, 1]


def test_of_two_objectives_nobody_beats_a_front() -> None:
    cost = {0: 1.0, 1: 5.0, 2: 6.0, 3: 2.0}
    trials = [trial(0, 0.5), trial(1, 0.9), trial(2, 0.8), trial(3, 0.4)]

    def both(trial: Trial, epoch: int) -> tuple[float, ...]:
        return (*top1(trial, epoch), -cost[trial.number])

    assert numbers(best(trials, 1, 2, both)) == [1, 0]  # trial 2 is worse and dearer than 1, trial 3 than 0
    assert numbers(best(trials, 1, 2, top1)) == [1, 2]


def test_the_furthest_come_first_so_that_waves_overlap() -> None:
    trials = [trial(0, 0.9), trial(1, 0.1), trial(2, wave=1), trial(3, 0.2, wave=1)]
    assert [(one.trial.number, one.epoch) for one in due(trials, BRACKET, top1)] == [(0, 3), (2, 1)]


def test_a_wave_knows_what_is_surely_there_and_no_more() -> None:
    first = [trial(0, 0.9), trial(1, 0.1)]
    assert may_suggest(1, first, BRACKET, top1)
    assert not may_suggest(1, [trial(0), first[1]], BRACKET, top1)
    second = [trial(2, 0.3, wave=1), trial(3, 0.2, wave=1)]
    assert not may_suggest(2, first + second, BRACKET, top1)  # the first wave's second rung is missing
    first[0] = trial(0, 0.9, 0.95)
    assert may_suggest(2, first + second, BRACKET, top1)
    assert [(one.sample["x"], one.epoch) for one in visible(1, first + second, BRACKET, top1)] == [(0, 1), (1, 1)]
    known = [(one.sample["x"], one.epoch) for one in visible(2, first + second, BRACKET, top1)]
    assert known == [(0, 1), (0, 3), (1, 1), (2, 1), (3, 1)]


def test_what_a_campaign_takes() -> None:
    assert planned([9], Bracket(epochs=(1, 3, 9))) == (9 + 3 * 2 + 6, 13)
    assert planned([9, 2], Bracket(epochs=(1, 3, 9))) == (21 + 2 + 2 + 6, 13 + 4)
    assert planned([4], Bracket(epochs=(5,))) == (20, 4)
    assert planned([9, 1], Bracket(epochs=(1, 3, 9), min_promoted=2)) == (9 + 3 * 2 + 2 * 6 + 9, 14 + 3)


def test_some_go_on_at_least() -> None:
    bracket = Bracket(epochs=(1, 3), reduction_factor=3, min_promoted=2)
    wave = [trial(0, 0.1), trial(1, 0.3), trial(2, 0.2), trial(3, 0.0)]
    assert [(one.trial.number, one.epoch) for one in due(wave, bracket, top1)] == [(1, 3), (2, 3)]
    assert [one.trial.number for one in due(wave[:1], bracket, top1)] == [0]  # one alone is enough
    with pytest.raises(ConfigError, match="min_promoted=0"):
        Bracket(epochs=(1, 3), min_promoted=0)
