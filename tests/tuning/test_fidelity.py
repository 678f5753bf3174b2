from __future__ import annotations

import dataclasses

import pytest

from tests.tuning.test_campaigns import campaign, manifest  # noqa: F401 - fixtures
from tpn_ray import recipes
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import ConfigError
from tpn_ray.tuning import campaigns, fidelity
from tpn_ray.tuning.how import How, fidelity_of
from tpn_ray.tuning.space import space
from tpn_ray.tuning.trial import Campaign

RUNGS = (2, 4, 10)


def test_each_rung_has_its_values() -> None:
    made = fidelity.parse(["clip.frames=4,8,16", "videos=0.25,0.5,1"], recipes.toy(), RUNGS)
    assert [made.changes(made.rung(epoch)) for epoch in RUNGS] == [{"clip.frames": n} for n in (4, 8, 16)]
    assert made.written == {"clip.frames": "4,8,16", "videos": "0.25,0.5,1"}
    assert [fidelity.Fidelity(epochs=RUNGS).rung(epoch) for epoch in RUNGS] == [0, 0, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clip.frames", "must be FIELD=VALUE"),
        ("clip.length=1,2,3", "unknown budget of a trial in --fidelity 'clip.length' .*; known: videos, clip.frames"),
        ("model.levels=1,2,3", "unknown budget of a trial in --fidelity 'model.levels'"),
        ("clip.frames=8,16", "has 2 values, the campaign has 3 rungs, at epochs 2, 4, 10"),
        ("clip.frames=4,8,12", "must end with 16, the recipe's own"),
        ("videos=0.1,0.5,0.9", "must end with 1, the recipe's own"),
        ("videos=0,0.5,1", "above 0 and at most 1"),
    ],
)
def test_nonsense(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fidelity.parse([text], recipes.toy(), RUNGS)


def test_shares_of_the_videos_are_of_every_class_and_hold_each_other(manifest: Manifest) -> None:  # noqa: F811
    half, most = (fidelity.some_of_each_class(manifest, share) for share in (0.5, 0.75))
    assert [len(one.select("train")) for one in (half, most, manifest)] == [16, 24, 32]
    assert set(half.select("train").labels.flatten().tolist()) == set(range(8))
    assert set(half.ids) < set(most.ids) < set(manifest.ids)
    assert half.select("val").ids == manifest.select("val").ids
    assert len({one.version for one in (half, most, manifest)}) == 3
    assert fidelity.some_of_each_class(manifest, 1) is manifest


def test_what_is_suggested_fits_every_rung(campaign: Campaign) -> None:  # noqa: F811
    how = How(fidelity=("clip.frames=4,8,16",))
    short = dataclasses.replace(campaign, fidelity=fidelity_of(campaign.recipe, how))
    fields = space("none", campaign.recipe, ["model.alpha=choice((1,2),(2,4),(4,8))"])
    arguments = {"searcher": "grid", "samples": 0, "seed": 0, "wave": 0, "objectives": "top1"}
    assert campaigns.search_for(campaign, fields, **arguments).samples == 3
    assert campaigns.search_for(short, fields, **arguments).samples == 2  # clips of 4 frames do not pool 8
    wanted = campaigns.search_for(short, fields, **arguments)
    assert campaigns.settings(short, wanted, how) != campaigns.settings(campaign, wanted, How())
    with pytest.raises(ConfigError, match="cannot be both searched and what --fidelity changes"):
        campaigns.search_for(short, space("none", campaign.recipe, ["clip.frames=whole(8,16)"]), **arguments)
    with pytest.raises(ConfigError, match="belongs to the rungs of --scheduler halving, not to 'asha'"):
        How(scheduler="asha", fidelity=("clip.frames=4,8,16",))
