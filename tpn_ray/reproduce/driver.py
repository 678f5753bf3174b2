"""A table as a campaign of runs, one for each row and seed. Runs on the driver.

Every run has a name made of its table, row and seed: the same command goes on where it stopped, and finished rows are
not trained again. What counts is the last checkpoint, not the best one, which would be chosen on the very videos that
are scored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tpn_ray import storage
from tpn_ray.clips.manifest import Manifest
from tpn_ray.data.views import parse_views
from tpn_ray.errors import ConfigError
from tpn_ray.predict import driver as predict
from tpn_ray.predict.driver import Scorers
from tpn_ray.predict.summary import by_label_set
from tpn_ray.predict.table import read_scores, video_tables, write_scores
from tpn_ray.reproduce.outcome import Outcome, outcome
from tpn_ray.reproduce.tables import Row, Scale, Table
from tpn_ray.train import driver as train
from tpn_ray.train.driver import Machines
from tpn_ray.train.events import Event
from tpn_ray.train.recipe import Recipe, replace_fields


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """Which runs, where."""

    name: str
    table: Table
    scale: Scale
    seeds: int
    epochs: int
    """0: the recipe's."""
    manifest: Manifest
    machines: Machines
    storage_uri: str

    def recipe(self, row: Row, seed: int) -> Recipe:
        """What is trained."""
        recipe = row.recipe(self.scale, seed)
        if self.epochs:
            recipe = replace_fields(recipe, {"loop.epochs": self.epochs})
        return train.recipe_for(recipe, self.manifest)

    def run_name(self, row: Row, seed: int) -> str:
        """A name that a row and a seed always have."""
        plain = re.sub(r"[^a-z0-9]+", "-", row.name.lower()).strip("-")
        return f"{self.name}-{plain}-seed{seed}"


def rows_named(table: Table, names: Sequence[str]) -> Table:
    """Only some rows; the first one stays, since the others are compared with it."""
    known = [row.name for row in table.rows]
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"the table has no row {unknown[0]!r}; it has: {', '.join(known)}")
    kept = [row for row in table.rows if not names or row.name in names or row is table.baseline]
    return Table(title=table.title, data=table.data, views=table.views, rows=tuple(kept), toy_shows=table.toy_shows)


def run(campaign: Campaign, on_run: Callable[[str, float], None], on_event: Callable[[Event], None]) -> list[Outcome]:
    """Train and score every row with every seed; what they say together, in the table's order."""
    hits: dict[str, list[list[bool]]] = {row.name: [] for row in campaign.table.rows}
    for seed in range(campaign.seeds):
        for (
            row
        ) in campaign.table.rows:  # a seed at a time, so that a campaign that is cut short compares like with like
            right = _hits(campaign, row, seed, on_event)
            hits[row.name].append(right)
            on_run(campaign.run_name(row, seed), float(np.mean(right)))
    baseline = np.array(hits[campaign.table.baseline.name])
    return [outcome(name, np.array(right), baseline) for name, right in hits.items()]


def _hits(campaign: Campaign, row: Row, seed: int, on_event: Callable[[Event], None]) -> list[bool]:
    """Of every validation video that could be used, whether all its labels were told."""
    name = campaign.run_name(row, seed)
    uri = storage.join(campaign.storage_uri, name, "table_scores.parquet")
    videos = campaign.manifest.select("val")
    table = read_scores(uri)[0] if storage.exists(uri) else _train_and_score(campaign, row, seed, videos, on_event)
    write_scores(table, uri)
    sets = by_label_set(table, videos.label_sets)
    usable = sorted(set.intersection(*(set(one.rows.tolist()) for one in sets)))
    places = {one.name: dict(zip(one.rows.tolist(), one.ranks.tolist(), strict=True)) for one in sets}
    return [all(places[name][video] == 0 for name in places) for video in usable]


def _train_and_score(
    campaign: Campaign, row: Row, seed: int, videos: Manifest, on_event: Callable[[Event], None]
) -> pa.Table:
    recipe, machines = campaign.recipe(row, seed), campaign.machines
    result = train.run(
        recipe,
        campaign.manifest,
        machines,
        storage_uri=campaign.storage_uri,
        name=campaign.run_name(row, seed),
        on_event=on_event,
    )
    scorers = Scorers(
        actors=machines.workers,
        cpus=machines.cpus_per_worker or 1.0,
        gpus=machines.gpus_per_worker,
        resources=machines.worker_resources,
        decode=machines.decoding(),
    )
    views = parse_views("1x1" if campaign.scale == "toy" else campaign.table.views)
    (table,) = video_tables(videos, predict.score(result.last, recipe, videos, views, scorers))
    return table
