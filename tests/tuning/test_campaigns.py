from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path

import pytest

from tpn_ray import recipes
from tpn_ray.datasets.manifest import Manifest, load_manifest
from tpn_ray.errors import BudgetError, ConfigError, ResourceError
from tpn_ray.resources import Decoding, PerWorker
from tpn_ray.training.machines import Machines
from tpn_ray.training.run_plan import recipe_for
from tpn_ray.tuning import campaigns
from tpn_ray.tuning.campaigns import concurrent_trials, search_for
from tpn_ray.tuning.how import How, cost
from tpn_ray.tuning.journal import Held, Point, Trial
from tpn_ray.tuning.space import space
from tpn_ray.tuning.trial import Campaign


@pytest.fixture(scope="module")
def manifest(toy_folder: Path) -> Manifest:
    return load_manifest(str(toy_folder))


@pytest.fixture
def campaign(manifest: Manifest, tmp_path: Path) -> Campaign:
    return Campaign(
        recipe=recipe_for(recipes.toy(), manifest),
        manifest=manifest,
        machines=Machines(workers=1),
        uri=str(tmp_path),
        name="search",
        tracking_uri="",
        experiment="",
        parent_run="",
        max_bad=Fraction(0),
        session="now",
    )


def test_how_many_trials_fit() -> None:
    machines = Machines(per_worker=PerWorker(gpus=0.5))  # 3 CPUs and a GPU each
    nodes = [dict[str, str]()]
    assert concurrent_trials(machines, {"CPU": 16.0, "GPU": 3.0}, nodes, 0) == 3
    assert concurrent_trials(machines, {"CPU": 7.0, "GPU": 3.0}, nodes, 0) == 2
    assert concurrent_trials(machines, {"CPU": 16.0, "GPU": 3.0}, nodes, 1) == 1
    assert concurrent_trials(Machines(workers=1), {"CPU": 2.0}, nodes, 0) == 1, "where a run fits, so does a trial"
    elastic = Machines(workers=4, min_workers=1)
    assert concurrent_trials(elastic, {"CPU": 2.0}, nodes, 0) == 1
    growing = dataclasses.replace(machines, decoding=Decoding(may_grow=True))
    assert concurrent_trials(growing, {"CPU": 1.0}, nodes, 5) == 5
    with pytest.raises(ResourceError, match=r"too few CPUs: the cluster has 2, and 3 are needed:\n  2 for 2 workers"):
        concurrent_trials(machines, {"CPU": 2.0, "GPU": 1.0}, nodes, 0)


def test_what_is_searched(campaign: Campaign) -> None:
    fields = space("none", campaign.recipe, ["optim.lr=choice(0.1,0.2)", "model.alpha=choice((1,2),(4,8),(2,4))"])
    arguments = {"samples": 0, "seed": 0, "wave": 0, "objectives": "top1+gmacs"}
    wanted = search_for(campaign, fields, searcher="grid", **arguments)
    assert wanted.samples == 6
    assert search_for(campaign, fields, searcher="grid", **{**arguments, "samples": 4}).samples == 4
    low, high = (
        Trial(
            number=0,
            sample={"optim.lr": 0.1, "model.levels": levels},
            points=(Point(epoch=1, scores={"val_top1": 0.5}, checkpoint=""),),
        )
        for levels in ([4, 5], [3, 4, 5])
    )
    assert wanted.objectives(low, 1)[0] == wanted.objectives(high, 1)[0] == 0.5
    assert wanted.objectives(low, 1)[1] > wanted.objectives(high, 1)[1]  # more levels, more arithmetic
    for wrong in ({"searcher": "x"}, {"objectives": "speed"}, {"samples": 0}, {"wave": -1}):
        with pytest.raises(ConfigError, match=r"unknown|must be at least 1"):
            search_for(campaign, fields, **{"searcher": "random", **arguments, **wrong})


@pytest.mark.parametrize("wrong", [{"scheduler": "x"}, {"max_concurrent": -1}, {"repeats": 1, "repeat_best": 0}])
def test_nonsense(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"unknown scheduler 'x'; known: halving|max_concurrent=-1|repeat_best=0"):
        How(**wrong)


def test_what_it_will_cost(campaign: Campaign) -> None:
    fields = space("lambda_alpha", campaign.recipe)
    arguments = {"searcher": "random", "samples": 9, "seed": 0, "wave": 0, "objectives": "top1"}
    wanted = search_for(campaign, fields, **arguments)
    takes = cost(campaign, wanted, How())
    assert str(takes) == "30 epochs with rungs at 2, 4, 10 (33% of 90)"
    assert takes.starts == 13
    assert takes.hours(36.0, 12.0) == pytest.approx(0.13 + 0.1)
    assert str(cost(campaign, wanted, How(scheduler="asha"))) == "at most 90 epochs"
    assert cost(campaign, wanted, How(repeats=2)).epochs == 30 + 2 * 3 * 10


def test_hours_count_over_all_submissions(campaign: Campaign) -> None:
    for number, session, end in ((0, "a", 3000.0), (1, "a", 3600.0), (2, "b", 1800.0)):
        held = Held(session=session, begin=0.0, started=1.0, end=end)
        campaign.journal.write(Trial(number=number, sample={}, held=(held,)))
    campaigns.budget_check(campaign, 0.0)()
    campaigns.budget_check(campaign, 1.6)()
    with pytest.raises(BudgetError, match=r"the 1.4 hours of --budget-hours are spent; nothing is lost"):
        campaigns.budget_check(campaign, 1.4)()


def test_repeats_budget_and_machines_may_change_the_rest_not(campaign: Campaign) -> None:
    fields = space("lambda_alpha", campaign.recipe)
    wanted = search_for(campaign, fields, searcher="random", samples=9, seed=0, wave=0, objectives="top1")
    before = campaigns.settings(campaign, wanted, How())
    assert campaigns.settings(campaign, wanted, How(repeats=2, budget_hours=3, max_concurrent=4)) == before
    assert campaigns.settings(campaign, wanted, How(reduction_factor=2)) != before
    assert campaigns.settings(campaign, dataclasses.replace(wanted, seed=1), How()) != before
