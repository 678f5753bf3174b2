"""A table as a campaign of runs, one per row and seed. Runs on the driver.

Every run is named after its table, row, and seed, so that the same command resumes where it stopped and finished rows
are not trained again. What counts is the last checkpoint, not the best one, which would be chosen on the very videos
that are scored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from tpn_ray import storage
from tpn_ray.clips.views import parse_views
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import ConfigError, difference
from tpn_ray.predict import scoring as predict
from tpn_ray.predict.compare import Named
from tpn_ray.predict.fusion import fuse
from tpn_ray.predict.summary import by_label_set
from tpn_ray.predict.table import read_scores, video_tables, write_scores
from tpn_ray.recipe import Recipe, replace_fields, to_plain, with_defaults
from tpn_ray.reproduce.outcome import Ranks, RowOutcome, outcome
from tpn_ray.reproduce.row import Scale, Table, TableRow
from tpn_ray.reproduce.tables import FRAMES
from tpn_ray.training.events import Event
from tpn_ray.training.machines import Machines
from tpn_ray.training.run import train
from tpn_ray.training.run_plan import recipe_for

ABOUT_KEY = b"tpn_ray.run"


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """Which runs to do, and where."""

    name: str
    table: Table
    scale: Scale
    seeds: int
    epochs: int
    """Epochs of each run; 0: the recipe's."""
    manifest: Manifest
    machines: Machines
    storage_uri: str

    @property
    def views(self) -> str:
        """Views in which every row is tested."""
        return "1x1" if self.scale == "toy" else self.table.views

    def recipe(self, row: TableRow, seed: int) -> Recipe:
        """Return the recipe to train."""
        recipe = row.recipe(self.scale, seed)
        if self.epochs:
            recipe = replace_fields(recipe, {"loop.epochs": self.epochs})
        if self.scale == "toy":  # where scores during training, which nobody reads, cost as much as training
            recipe = replace_fields(recipe, {"loop.evaluate_every_epochs": recipe.loop.epochs})
        return recipe_for(recipe, self.manifest)

    def run_name(self, row: TableRow, seed: int) -> str:
        """Return the fixed name of the run for a row and a seed."""
        plain = re.sub(r"[^a-z0-9]+", "-", row.name.lower()).strip("-")
        return f"{self.name}-{plain}-seed{seed}"


def rows_named(table: Table, names: Sequence[str], scale: Scale, *, flow: bool = True) -> Table:
    """Return the table with the named rows, or all of the scale and, without `flow`, of RGB. What they are compared
    with, or made of, stays."""
    known = [row.name for row in table.rows]
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"the table has no row {unknown[0]!r}; it has: {', '.join(known)}")
    usual = [
        row.name
        for row in table.rows
        if (scale == "full" or not row.only_full)
        and (flow or not any(one.needs_flow for one in (row, *map(table.named, row.fuses))))
    ]
    chosen = [row for row in table.rows if row.name in (names or usual)]
    needed = [table.baseline_of(row) for row in chosen]
    needed += [table.named(name) for row in (*chosen, *needed) for name in row.fuses]
    kept = [row for row in table.rows if row in chosen or row in needed]
    return replace(table, rows=tuple(kept))


def run(
    campaign: Reproduction, on_run: Callable[[str, dict[str, float]], None], on_event: Callable[[Event], None]
) -> dict[str, list[RowOutcome]]:
    """Train and score every row with every seed; return the combined outcomes of each label set in the table's
    order."""
    ranks: dict[str, dict[str, list[Ranks]]] = {name: {} for name in campaign.manifest.label_sets}
    for seed in range(campaign.seeds):
        # One seed at a time, so that a campaign that is cut short compares like with like.
        for row in campaign.table.rows:
            found = _ranks(campaign, row, seed, on_event)
            for name, places in found.items():
                ranks[name].setdefault(row.name, []).append(places)
            on_run(campaign.run_name(row, seed), {name: float((places == 0).mean()) for name, places in found.items()})
    baselines = {row.name: campaign.table.baseline_of(row).name for row in campaign.table.rows}
    return {
        name: [outcome(row, np.array(one), np.array(rows[baselines[row]])) for row, one in rows.items()]
        for name, rows in ranks.items()
    }


def checkpoints(
    campaign: Reproduction, on_trained: Callable[[str, str], None], on_event: Callable[[Event], None]
) -> dict[str, tuple[str, ...]]:
    """Return one checkpoint per seed for every row, but only one for the row that measures tempo.

    `on_trained` gets each run and checkpoint.
    """
    found: dict[str, tuple[str, ...]] = {}
    for row in campaign.table.rows:
        for seed in range(1 if row is FRAMES else campaign.seeds):
            last = checkpoint(campaign, row, seed, on_event)
            found[row.name] = (*found.get(row.name, ()), last)
            on_trained(campaign.run_name(row, seed), last)
    return found


def checkpoint(campaign: Reproduction, row: TableRow, seed: int, on_event: Callable[[Event], None]) -> str:
    """Return the last checkpoint of a row, training it if it does not exist."""
    return train(
        campaign.recipe(row, seed),
        campaign.manifest,
        campaign.machines,
        storage_uri=campaign.storage_uri,
        name=campaign.run_name(row, seed),
        on_event=on_event,
    ).last


def _ranks(campaign: Reproduction, row: TableRow, seed: int, on_event: Callable[[Event], None]) -> dict[str, Ranks]:
    """Return, for each label set, the rank of the right class for every usable validation video."""
    if row.fuses:
        first, second = (_scores(campaign, campaign.table.named(name), seed, on_event) for name in row.fuses)
        table, label_sets = fuse(first, second, weight=1.0)
    else:
        table, label_sets = _scores(campaign, row, seed, on_event)
    return {one.name: one.ranks for one in by_label_set(table, label_sets)}


def _scores(campaign: Reproduction, row: TableRow, seed: int, on_event: Callable[[Event], None]) -> Named:
    """Return the scores of a row's validation videos, trained and scored now if they are not there."""
    uri = storage.join(campaign.storage_uri, campaign.run_name(row, seed), "table_scores.parquet")
    videos = campaign.manifest.select("val")
    if storage.exists(uri):
        table = read_scores(uri)[0]
        _refuse_another(campaign, row, seed, table, uri)
    else:
        table = _train_and_score(campaign, row, seed, videos, on_event)
        write_scores(table, uri)
    return table, videos.label_sets


def about_run(campaign: Reproduction, row: TableRow, seed: int) -> dict[str, Any]:
    """Return what determines the scores of a run."""
    about = {
        "recipe": to_plain(campaign.recipe(row, seed)),
        "dataset_version": campaign.manifest.version,
        "views": campaign.views,
    }
    plain: dict[str, Any] = json.loads(json.dumps(about))
    return plain


def _refuse_another(campaign: Reproduction, row: TableRow, seed: int, table: pa.Table, uri: str) -> None:
    """Raise ConfigError if the existing scores are not those of this row, such as those of fewer epochs."""
    before = json.loads((table.schema.metadata or {}).get(ABOUT_KEY, b"{}"))
    if changed := difference(with_defaults(before), about_run(campaign, row, seed)):
        raise ConfigError(
            f"{uri} was scored with other settings:\n  "
            + "\n  ".join(line.removeprefix("recipe.") for line in changed)
            + "\nSet them back, or give another --storage"
        )


def _train_and_score(
    campaign: Reproduction, row: TableRow, seed: int, videos: Manifest, on_event: Callable[[Event], None]
) -> pa.Table:
    recipe, last = campaign.recipe(row, seed), checkpoint(campaign, row, seed, on_event)
    views = parse_views(campaign.views)
    (table,) = video_tables(videos, predict.score(last, recipe, videos, views, campaign.machines.for_scoring))
    about = json.dumps(about_run(campaign, row, seed)).encode()
    return table.replace_schema_metadata({**table.schema.metadata, ABOUT_KEY: about})
