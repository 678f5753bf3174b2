from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from ray.tune import schedulers

from tests.tuning.test_campaigns import campaign, manifest  # noqa: F401 - fixtures
from tpn_ray import recipes
from tpn_ray.errors import ConfigError
from tpn_ray.tuning import engine
from tpn_ray.tuning import schedulers as ours
from tpn_ray.tuning.distributions import choice
from tpn_ray.tuning.halving import Search
from tpn_ray.tuning.journal import Journal, Point, Trial
from tpn_ray.tuning.space import Sample, Space, problem
from tpn_ray.tuning.trial import Campaign, incarnation

SPACE: Space = {"loss.lambdas.0": FloatDistribution(0.1, 1), "model.alpha": choice(((1, 2), (4, 8)))}


def is_valid(sample: Sample) -> bool:
    return not problem(recipes.toy(), sample)


def wanted(searcher: str, space: Space = SPACE) -> Search:
    return Search(
        space=space,
        searcher=searcher,
        samples=3,
        seed=0,
        is_valid=is_valid,
        objectives=lambda trial, epoch: (0.5,),
    )


def test_samples_are_suggested_once_and_mutants_keep_theirs(tmp_path: Path) -> None:
    journal = Journal(uri=str(tmp_path))

    def all_of_them() -> list[Sample]:
        suggestions = engine.OneByOne(journal, wanted("random"), 9)
        given = [suggestions.suggest("id") for _ in range(3)]
        assert [(one["number"], one["until"]) for one in given] == [(0, 9), (1, 9), (2, 9)]
        return [one["sample"] for one in given]

    first = all_of_them()
    assert [trial.sample for trial in journal.trials()] == first, "a trial's process reads it there"
    mutant = {"loss.lambdas.0": 0.5, "model.alpha": [4, 8]}
    journal.write(Trial(number=1, sample=mutant))
    assert all_of_them() == [first[0], mutant, first[2]]
    assert len(journal.waves()) == 1


def test_a_model_that_is_asked_again_after_a_kill_repeats_itself(tmp_path: Path) -> None:
    journal = Journal(uri=str(tmp_path))
    before = engine.OneByOne(journal, wanted("tpe"), 9)
    given = [before.suggest("a"), before.suggest("b")]
    after = engine.OneByOne(journal, wanted("tpe"), 9)
    assert [after.suggest("c"), after.suggest("d")] == given
    third = after.suggest("e")
    assert third["number"] == 2
    assert third["sample"] not in [one["sample"] for one in given]


def test_pbt_changes_only_what_may_change_in_flight(campaign: Campaign) -> None:  # noqa: F811
    scheduler = ours.pbt(campaign, wanted("random", {**SPACE, "clip.frames": IntDistribution(8, 16)}))
    assert set(scheduler.changing) == set(SPACE)
    with pytest.raises(ConfigError, match="pbt changes fields in flight .* none of them: clip.frames"):
        ours.pbt(campaign, wanted("random", {"clip.frames": IntDistribution(8, 16)}))


MUTATIONS = """
from types import SimpleNamespace
from tpn_ray.tuning.schedulers import Population
from tpn_ray.tuning.halving import Search
from optuna.distributions import FloatDistribution
from tpn_ray.tuning.distributions import choice
space = {"loss.lambdas.0": FloatDistribution(0.1, 1), "model.alpha": choice(((1, 2), (4, 8)))}
wanted = Search(space=space, searcher="random", samples=4, seed=7, is_valid=lambda sample: True, objectives=None)
population = Population(wanted, space, 9, 1)
sample = {"loss.lambdas.0": 0.5, "model.alpha": [1, 2]}
class Trial:
    def __init__(self, number):
        self.config = {"number": number, "sample": sample}
trials = [Trial(number) for number in range(4)]
population._trial_state = {trial: SimpleNamespace(last_result={"epoch": 2}) for trial in trials}
for trial in trials:
    print(population._get_new_config(trial, trials[0])[0]["sample"], population._generator(trial).integers(3))
"""


def test_a_campaign_run_again_in_another_process_mutates_as_before() -> None:
    """Strings have another hash in each process, and a generator without a seed other draws."""
    said = [
        subprocess.run(
            [sys.executable, "-c", MUTATIONS],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1]
    assert len(set(said[0].splitlines())) == 4, "each trial has draws of its own"


@pytest.mark.parametrize(
    ("own", "donors", "told_again", "mutates"), [(1, 2, False, True), (1, 2, True, False), (1, 9, False, False)]
)
def test_who_is_exploited(
    own: int,
    donors: int,
    told_again: bool,
    mutates: bool,
    campaign: Campaign,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A donor at its end would leave nothing to train, and so no checkpoint."""
    done: list[str] = []
    monkeypatch.setattr(schedulers.PopulationBasedTraining, "_exploit", lambda *_: done.append("exploited"))
    scheduler = ours.pbt(campaign, wanted("random"))
    scheduler.epochs = 9
    results = {"worst": {"epoch": own, "told_again": told_again}, "best": {"epoch": donors}}
    scheduler._trial_state = {name: SimpleNamespace(last_result=result) for name, result in results.items()}
    scheduler._exploit(None, "worst", "best")
    assert bool(done) == mutates


def test_donors_are_chosen_by_the_seed(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    chosen: list[str] = []
    monkeypatch.setattr(
        schedulers.PopulationBasedTraining,
        "_checkpoint_or_exploit",
        lambda self, trial, controller, upper, lower: chosen.append(
            "".join(str(one.config["number"]) for one in upper)
        ),
    )

    class Member:
        def __init__(self, number: int) -> None:
            self.config = {"number": number, "sample": {}}

    def choose(seed: int) -> list[str]:
        chosen.clear()
        scheduler = ours.pbt(campaign, dataclasses.replace(wanted("random"), seed=seed))
        members = [Member(number) for number in range(8)]
        upper, lower = members[:4], members[4:]
        scheduler._trial_state = {one: SimpleNamespace(last_result={"epoch": 1}) for one in members}
        for member in (upper[0], *lower):
            scheduler._checkpoint_or_exploit(member, None, upper[::-1] if seed else upper, lower)
        return chosen.copy()

    assert choose(3) == choose(3)
    assert choose(0)[0] == "0123", "who is among the best saves a checkpoint"
    assert {len(one) for one in choose(0)[1:]} == {1}
    assert len({tuple(choose(seed)) for seed in range(4)}) == 4


def test_who_goes_on_and_who_is_a_mutant() -> None:
    points = tuple(Point(epoch=epoch, scores={"val_top1": 0.1}, checkpoint="own") for epoch in (1, 2, 3))
    trial = Trial(number=4, sample={"optim.lr": 0.1}, points=points)
    assert incarnation(trial, {"optim.lr": 0.1}, {}) == (trial, "")
    own = {"number": 4, "epoch": 2, "checkpoint": "own"}
    assert incarnation(trial, {"optim.lr": 0.1}, own) == (trial, "")
    donor = {"number": 1, "epoch": 2, "checkpoint": "donor"}
    mutant, start = incarnation(trial, {"optim.lr": 0.2}, donor)
    assert (mutant.run, start) == ("trial-0004-from-0001-epoch-0002", "donor")
    assert [point.epoch for point in mutant.points] == [1, 2]
    assert mutant.history == ["from trial 1 at epoch 2: lr 0.1 -> 0.2"]
    # Its process is lost and it is begun again: it is the same mutant, not another.
    assert incarnation(mutant, {"optim.lr": 0.2}, donor) == (mutant, start)
    assert incarnation(mutant, {"optim.lr": 0.2}, {**own, "epoch": 3}) == (mutant, start)
    # A clone of its donor with the donor's very settings begins from the donor all the same.
    clone, start = incarnation(trial, {"optim.lr": 0.1}, donor)
    assert (clone.run, start) == (mutant.run, "donor")
