"""A campaign whose runs are done already: what was scored is read, and nothing is trained again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tpn_ray import storage
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.errors import ConfigError
from tpn_ray.predict.table import LABEL_SETS_KEY, write_scores
from tpn_ray.reproduce import table_runs, table_text
from tpn_ray.reproduce.row import TableRow
from tpn_ray.reproduce.table_runs import Reproduction, rows_named
from tpn_ray.reproduce.tables import table
from tpn_ray.training.machines import Machines


@pytest.fixture
def campaign(toy_folder: Path, tmp_path: Path) -> Reproduction:
    return Reproduction(
        name="table6c-toy",
        table=rows_named(table("6c"), ["parallel"], "toy"),
        scale="toy",
        seeds=3,
        epochs=2,
        manifest=load_manifest(str(toy_folder)),
        machines=Machines(),
        storage_uri=str(tmp_path),
    )


def save(campaign: Reproduction, row: int, seed: int, right: int) -> None:
    """The scores of a run that gets the first `right` of 16 validation videos right."""
    videos = campaign.manifest.select("val")
    scores = np.zeros((16, 8), dtype=np.float32)
    scores[np.arange(16), (videos.labels[:, 0] + (np.arange(16) >= right)) % 8] = 1
    columns = {"id": videos.ids, "labels": videos.labels.tolist(), "reason": [""] * 16, "scores": scores.tolist()}
    name = campaign.run_name(campaign.table.rows[row], seed)
    uri = storage.join(campaign.storage_uri, name, "table_scores.parquet")
    about = json.dumps(table_runs.about_run(campaign, campaign.table.rows[row], seed))
    keys = {LABEL_SETS_KEY: json.dumps(videos.label_sets), table_runs.ABOUT_KEY: about}
    write_scores(pa.table(columns, metadata=keys), uri)


def test_rows_and_seeds_come_together(campaign: Reproduction) -> None:
    for seed, (baseline, pyramid) in enumerate([(4, 12), (5, 14), (4, 12)]):
        save(campaign, 0, seed, baseline)
        save(campaign, 1, seed, pyramid)
    seen = list[str]()
    found = table_runs.run(campaign, on_run=lambda name, top1: seen.append(name), on_event=lambda event: None)
    assert seen[:2] == ["table6c-toy-none-i3d-50-seed0", "table6c-toy-parallel-seed0"]
    assert len(seen) == 6
    (outcomes,) = found.values()
    assert outcomes[1].top1 == (12 / 16, 14 / 16, 12 / 16)
    assert outcomes[1].gain == pytest.approx(25 / 48)
    assert outcomes[1].is_better
    said = "\n".join(table_text.remarks(campaign, found))
    assert "outside the interval: parallel" in said
    assert "this is the toy" in said
    assert [table.row_count for table in table_text.as_tables(campaign, found)] == [2]


def test_a_row_of_fusion_is_made_of_the_scores_of_others(
    campaign: Reproduction, flow_dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = dataclasses.replace(
        campaign, name="table5-toy", table=rows_named(table("5"), ["TSN (fusion)"], "toy"), seeds=1,
        manifest=load_manifest(flow_dataset),
    )  # fmt: skip
    videos, asked = fused.manifest.select("val"), list[str]()

    def scored(campaign: Reproduction, row: TableRow, *_: object) -> pa.Table:
        """RGB is right, and sure, of the first four videos; flow of all but these."""
        asked.append(row.name)
        sure = (np.arange(8) < 4) != row.needs_flow
        scores = np.full((8, 8), 0.1, dtype=np.float32)
        scores[np.arange(8), (videos.labels[:, 0] + ~sure) % 8] = np.where(sure, 0.9, 0.2)
        columns = {
            "id": videos.ids,
            "labels": videos.labels.tolist(),
            "predicted": [[""]] * 8,
            "scores": scores.tolist(),
        }
        about = json.dumps(table_runs.about_run(campaign, row, 0))
        keys = {LABEL_SETS_KEY: json.dumps(videos.label_sets), table_runs.ABOUT_KEY: about}
        return pa.table({**columns, "predicted": [[""]] * 8, "reason": [""] * 8, "message": [""] * 8}, metadata=keys)

    monkeypatch.setattr(table_runs, "_train_and_score", scored)
    (outcomes,) = table_runs.run(fused, on_run=lambda name, top1: None, on_event=lambda event: None).values()
    assert {one.name: one.top1 for one in outcomes} == {"TSN": (0.5,), "TSN (flow)": (0.5,), "TSN (fusion)": (1.0,)}
    assert asked == ["TSN", "TSN (flow)"], "each is trained once"


def test_scores_of_other_settings_are_not_taken_for_these(campaign: Reproduction) -> None:
    """Fewer epochs under the same name would be another table."""
    save(campaign, 0, 0, 4)
    longer = dataclasses.replace(campaign, epochs=3)
    with pytest.raises(ConfigError, match=r"scored with other settings:\n  loop.epochs: 2 then, 3 now"):
        table_runs.run(longer, on_run=lambda name, top1: None, on_event=lambda event: None)


def test_recipes_of_a_campaign(campaign: Reproduction) -> None:
    recipe = campaign.recipe(campaign.table.rows[1], 2)
    assert (recipe.model.flow, recipe.loop.seed, recipe.loop.epochs) == ("parallel", 2, 2)
