from __future__ import annotations

import optuna
import pytest
from optuna.distributions import FloatDistribution

from tpn_ray.tuning.distributions import choice
from tpn_ray.tuning.journal import Held, Point, Trial
from tpn_ray.tuning.report.numbers import (
    fair_study,
    hours,
    importances,
    interval,
    repeated,
    rung_correlations,
    shared_fields,
    short,
)

SPACE = {"x": FloatDistribution(0, 1), "kind": choice(("a", "b"))}


def trial(number: int, *tops: float, sample: dict[str, object] | None = None, repeat_of: int | None = None) -> Trial:
    points = tuple(
        Point(epoch=epoch, scores={"val_top1": top, "val_videos": 100.0}, checkpoint="c")
        for epoch, top in enumerate(tops, 1)
    )
    return Trial(number=number, sample=sample or {}, points=points, repeat_of=repeat_of)


def test_confidence() -> None:
    low, high = interval(trial(0, 0.5))
    assert (round(low, 2), round(high, 2)) == (0.40, 0.60)
    assert interval(trial(0)) == (0.0, 1.0)


def test_importance_is_that_of_the_field_that_matters_at_an_epoch_half_have_reached() -> None:
    trials = [trial(i, i / 20 + 0.01 * (i % 2), sample={"x": i / 20, "kind": "ab"[i % 2]}) for i in range(20)]
    trials[19] = trial(19, 0.95, 0.99, sample={"x": 0.95, "kind": "b"})
    epoch, study = fair_study(trials, SPACE)
    assert epoch == 1
    assert study is not None
    epoch, shares = importances(trials, SPACE)
    assert epoch == 1
    assert shares["x"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
    assert fair_study(trials[:19], SPACE)[0] == 1
    assert importances(trials[:19], SPACE) == (0, {}), "19 trials explain nothing"
    assert fair_study(trials[:3], SPACE) == (0, None)


def test_a_field_that_some_trial_does_not_have_explains_nothing() -> None:
    trials = [trial(i, i / 20, sample={"x": i / 20} if i else {"x": 0.0, "kind": "a"}) for i in range(20)]
    assert shared_fields(trials, SPACE) == ["x"]
    assert list(importances(trials, SPACE)[1]) == ["x"]


def test_optuna_has_the_trials_under_their_own_numbers() -> None:
    trials = [trial(number, 0.1 * number, sample={"x": 0.5, "kind": "a"}) for number in (5, 3, 1, 4)]
    _, study = fair_study(trials, SPACE)
    assert study is not None
    complete = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    assert {one.number: one.value for one in complete} == pytest.approx({1: 0.1, 3: 0.3, 4: 0.4, 5: 0.5})


def test_a_field_is_short_in_a_table() -> None:
    assert [short(name) for name in ("optim.lr", "loss.lambdas.0")] == ["lr", "lambda 0"]


def test_rank_correlation_with_the_end() -> None:
    trials = [trial(i, 0.1 * i, 0.5 - 0.1 * i, 0.1 * i) for i in range(5)] + [trial(9, 0.99)]
    assert rung_correlations(trials, 3) == [(1, 5, pytest.approx(1)), (2, 5, pytest.approx(-1))]
    assert rung_correlations(trials[:3], 3) == []


def test_hours_held_started_idle_and_saved() -> None:
    def held(session: str, begin: float, end: float) -> Held:
        return Held(session=session, begin=begin, started=begin + 360, end=end)

    one = Trial(number=0, sample={}, points=trial(0, 0.1, 0.2, 0.3).points, held=(held("a", 0, 3600),))
    two = Trial(number=1, sample={}, points=trial(1, 0.1).points, held=(held("a", 0, 1800), held("b", 9000, 10800)))
    found = hours([one, two], 3, 2)
    assert (found.epochs, found.epochs_in_full) == (4, 6)
    assert found.held == pytest.approx(2)
    assert found.starting == pytest.approx(0.3)
    assert found.in_full == pytest.approx(3)
    assert found.wall == pytest.approx(1.5)  # the time between two submissions is nobody's
    assert found.idle == pytest.approx(1 / 3)


def test_repeats_are_paired_by_seed() -> None:
    trials = [trial(0, 0.80), trial(1, 0.82)]
    again = [
        trial(100 + 10 * of + seed, top, sample={"loop.seed": seed}, repeat_of=of)
        for of, tops in ((0, (0.70, 0.90)), (1, (0.60, 0.81)))
        for seed, top in enumerate(tops, 1)
    ]
    best, other = repeated(trials, again)
    assert (best.number, other.number) == (0, 1)
    assert best.mean == pytest.approx(0.8)
    assert best.deviation == pytest.approx(0.1)
    assert (best.p, best.difference) == (None, 0.0)
    # Differences 0.02, -0.10, -0.09: t = -0.0567 / (0.0666 / sqrt(3)) = -1.474 with 2 degrees of freedom.
    assert other.difference == pytest.approx(-0.17 / 3)
    assert other.p == pytest.approx(0.278, abs=2e-3)
    assert repeated(trials, []) == []
