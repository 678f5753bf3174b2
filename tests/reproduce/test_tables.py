"""Every row of every table can be trained, at both scales."""

from __future__ import annotations

import pytest
import torch

from tpn_ray.errors import ConfigError
from tpn_ray.model.recognizer import build_model
from tpn_ray.reproduce.table_runs import rows_named
from tpn_ray.reproduce.table_text import played
from tpn_ray.reproduce.tables import FIGURES, FRAMES, TABLES, table


@pytest.mark.parametrize("name", TABLES)
def test_rows_are_recipes_whose_networks_can_be_built(name: str) -> None:
    made = table(name)
    assert made.baseline.name == {"2": "TPN-R50 32x2", "3": "TSN-50", "4": "TSN-50", "5": "TSN"}.get(
        name, {"6d": "r50 8x8", "backbones": "i3d"}.get(name, "none (I3D-50)")
    )
    assert len({row.name for row in made.rows}) == len(made.rows)
    trained = [row for row in made.rows if not row.fuses]
    recipes = [row.recipe("toy", seed=5) for row in trained]
    assert all(recipe.loop.seed == 5 for recipe in recipes)
    for recipe in {str((one.model, one.clip)): one for one in recipes}.values():
        model = build_model(recipe.model).eval()
        clip = recipe.clip
        with torch.inference_mode():
            scores = model(torch.zeros(1, clip.channels, clip.frames, 32, 32)).action
        assert scores.shape == (1, 8)
    with torch.device("meta"):
        for config in {row.recipe("full", seed=0).model for row in trained}:
            build_model(config)


def test_rows_that_only_the_backbone_distinguishes_differ() -> None:
    made = table("6c")
    assert len({str(row.recipe("toy", 0)) for row in made.rows}) == 6
    assert len({str(row.recipe("full", 0)) for row in made.rows}) == 6


def test_rows_of_flow_and_fusion() -> None:
    for name, fused in (("2", ["Two-stream I3D"]), ("5", ["TSN (fusion)", "TSN + TPN (fusion)"])):
        made = table(name)
        assert [row.name for row in made.rows if row.fuses] == fused
        names = [row.name for row in made.rows]
        for row in made.rows:
            assert all(names.index(one) < names.index(row.name) for one in row.fuses)
            assert row.needs_flow == (row.name.endswith("(flow)"))
    assert [row.name for row in rows_named(table("5"), [], "toy", flow=False).rows] == ["TSN", "TSN + TPN"]
    assert [row.name for row in rows_named(table("2"), ["Two-stream I3D"], "toy").rows] == [
        *("I3D", "I3D (flow)", "Two-stream I3D", "TPN-R50 32x2"),
    ]


def test_some_rows_beside_the_first() -> None:
    assert [row.name for row in rows_named(table("6a"), ["res{4,5}"], "toy").rows] == ["none (I3D-50)", "res{4,5}"]
    assert len(rows_named(table("6a"), [], "toy").rows) == 5
    assert len(rows_named(table("6d"), [], "full").rows) == 12
    assert len(rows_named(table("6d"), [], "toy").rows) == 6  # the toy has one depth
    with pytest.raises(ConfigError, match=r"has no row 'res9'; it has: none"):
        rows_named(table("6a"), ["res9"], "toy")


@pytest.mark.parametrize("name", FIGURES)
def test_networks_of_figures_can_be_built(name: str) -> None:
    made = table(name)
    assert (FRAMES in made.rows) == (name != "figure5")
    with torch.device("meta"):
        for row in made.rows:
            build_model(row.recipe("toy", seed=1).model)
            build_model(row.recipe("full", seed=1).model)
    frames = FRAMES.recipe("toy", seed=1)
    assert (frames.model.backbone[:3], frames.model.neck, frames.loop.seed) == ("tsn", "none", 1)


def test_speeds_of_figure_5_are_the_papers() -> None:
    assert played(8) == (2, 4, 6, 8, 10, 12, 14, 16)
    assert played(2) == (1, 2, 3, 4)


def test_every_backbone_is_compared_with_itself() -> None:
    made = table("backbones")
    assert {row.name: made.baseline_of(row).name for row in made.rows if row.against} == {
        row.name: row.name.removesuffix(" + TPN") for row in made.rows
    }
    assert [row.name for row in rows_named(made, ["tsm + TPN"], "toy").rows] == ["tsm", "tsm + TPN"]


def test_unknown_table() -> None:
    with pytest.raises(ConfigError, match="unknown table '7'; known: 2, 3, 4, 5, 6a"):
        table("7")
