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
from tpn_ray.tuning import asynchronous
from tpn_ray.tuning.distributions import choice
from tpn_ray.tuning.halving import Search
from tpn_ray.tuning.journal import Journal, Point, Trial
from tpn_ray.tuning.space import Sample, Space, problem
from tpn_ray.tuning.trial import Campaign, _incarnation, number_of

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
    first = asynchronous.all_samples(journal, wanted("random"))
    assert len(first) == 3
    mutant = {"loss.lambdas.0": 0.5, "model.alpha": [4, 8]}
    journal.write(Trial(number=1, sample=mutant))
    again = asynchronous.all_samples(journal, wanted("random"))
    assert again == [first[0], mutant, first[2]]


def test_a_model_that_is_asked_again_after_a_kill_repeats_itself(tmp_path: Path) -> None:
    journal = Journal(uri=str(tmp_path))
    before = asynchronous.Asking(journal, wanted("tpe"))
    given = [before.suggest("a"), before.suggest("b")]
    journal.write(Trial(number=0, sample=given[0]["sample"]))
    after = asynchronous.Asking(journal, wanted("tpe"))
    assert [after.suggest("c"), after.suggest("d")] == given
    third = after.suggest("e")
    assert third["number"] == 2
    assert third["sample"] not in [one["sample"] for one in given]


def test_pbt_changes_only_what_may_change_in_flight(campaign: Campaign) -> None:  # noqa: F811
    scheduler = asynchronous.pbt(campaign, wanted("random", {**SPACE, "clip.frames": IntDistribution(8, 16)}))
    assert set(scheduler.changing) == set(SPACE)
    with pytest.raises(ConfigError, match="pbt changes fields in flight .* none of them: clip.frames"):
        asynchronous.pbt(campaign, wanted("random", {"clip.frames": IntDistribution(8, 16)}))


MUTATIONS = """
from types import SimpleNamespace
from tpn_ray.tuning.asynchronous import Population
from tpn_ray.tuning.halving import Search
from optuna.distributions import FloatDistribution
from tpn_ray.tuning.distributions import choice
space = {"loss.lambdas.0": FloatDistribution(0.1, 1), "model.alpha": choice(((1, 2), (4, 8)))}
wanted = Search(space=space, searcher="random", samples=4, seed=7, is_valid=lambda sample: True, objectives=None)
population = Population(wanted, space, 9, 1)
sample = {"loss.lambdas.0": 0.5, "model.alpha": [1, 2]}
class Trial:
    def __init__(self, number):
        self.trial_id, self.config = f"x_0000{number}", {"sample": sample}
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
    scheduler = asynchronous.pbt(campaign, wanted("random"))
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
        lambda self, trial, controller, upper, lower: chosen.append("".join(one.trial_id[-1] for one in upper)),
    )

    class Member:
        def __init__(self, number: int) -> None:
            self.trial_id, self.config = f"x_0000{number}", {"sample": {}}

    def choose(seed: int) -> list[str]:
        chosen.clear()
        scheduler = asynchronous.pbt(campaign, dataclasses.replace(wanted("random"), seed=seed))
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


def test_a_trials_number_is_its_own_whosesoever_settings_it_has() -> None:
    assert number_of("8f3c1_00007", {"sample": {}}) == 7
    assert number_of("8f3c1d2e", {"number": 4, "sample": {}}) == 4


def test_who_goes_on_and_who_is_a_mutant() -> None:
    points = tuple(Point(epoch=epoch, scores={"val_top1": 0.1}, checkpoint="own") for epoch in (1, 2, 3))
    trial = Trial(number=4, sample={"optim.lr": 0.1}, points=points)
    assert _incarnation(trial, {"optim.lr": 0.1}, {}) == (trial, "trial-0004", "")
    own = {"number": 4, "epoch": 2, "checkpoint": "own"}
    assert _incarnation(trial, {"optim.lr": 0.1}, own) == (trial, "trial-0004", "")
    donor = {"number": 1, "epoch": 2, "checkpoint": "donor"}
    mutant, name, start = _incarnation(trial, {"optim.lr": 0.2}, donor)
    assert (name, start) == ("trial-0004-from-0001-epoch-0002", "donor")
    assert [point.epoch for point in mutant.points] == [1, 2]
    assert mutant.history == ["from trial 1 at epoch 2: lr 0.1 -> 0.2"]
    # Its process is lost and it is begun again: it is the same mutant, not another.
    assert _incarnation(mutant, {"optim.lr": 0.2}, donor) == (mutant, name, start)
    assert _incarnation(mutant, {"optim.lr": 0.2}, {**own, "epoch": 3}) == (mutant, name, start)
    # A clone of its donor with the donor's very settings begins from the donor all the same.
    assert _incarnation(trial, {"optim.lr": 0.1}, donor)[1:] == (name, "donor")
