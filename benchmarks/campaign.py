"""Measures what successive halving saves and what it costs in quality, against the full grid. Runs on the driver."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from tpn_ray import storage, tracking
from tpn_ray.clips.views import parse_views
from tpn_ray.datasets.manifest import Manifest, load_manifest
from tpn_ray.errors import ConfigError, TrainingError
from tpn_ray.predict import scoring as predict
from tpn_ray.recipe import Recipe, replace_fields
from tpn_ray.resources import Resources
from tpn_ray.training.machines import Machines
from tpn_ray.training.run_plan import recipe_for
from tpn_ray.tuning import campaigns
from tpn_ray.tuning.how import How
from tpn_ray.tuning.journal import Trial
from tpn_ray.tuning.report.numbers import hours
from tpn_ray.tuning.space import space
from tpn_ray.tuning.trial import Campaign


@dataclass(frozen=True, kw_only=True)
class CampaignBench:
    """A grid of settings, searched by successive halving and trained in full, with several seeds."""

    data: str
    """Dataset, as jobs/train.py takes it."""

    vary: tuple[str, ...] = (
        "model.alpha=choice((1,1),(1,2),(2,4))",
        "loss.lambdas.0=choice(0.1,0.5)",
        "optim.lr=choice(0.05,0.1)",
    )
    """Fields of the grid, each as FIELD=choice(...)."""

    seeds: int = 3
    """Number of seeds for the data order, augmentation, and initial weights; each is used for one halving search and
    one full grid."""

    epochs: int = 18
    """Number of epochs of a full trial; the part up to the first rung must be long enough to learn something."""

    rungs: int = 3
    """Number of times that trials are compared, including the end."""

    reduction_factor: int = 3
    """Ratio of the trials at a rung to those that are promoted from it."""

    min_promoted: int = 2
    """Minimum number of promoted trials."""

    max_concurrent: int = 2
    """Number of trials that run at the same time."""

    fresh: str = ""
    """Dataset of the same kind that no trial has seen, such as toy videos of another --seed. The results of both
    searches are scored again on its validation videos, because the best of many trials looks too good on the videos
    that it was selected on."""

    folder: str = "runs/bench-campaign"
    """Folder of the campaigns; the same command resumes there, and one with other rungs reuses the same grids."""

    address: str = ""
    """Ray cluster to join; by default RAY_ADDRESS, otherwise a local Ray."""

    json: str = ""
    """File to write the results to."""

    def __post_init__(self) -> None:
        for field in ("seeds", "epochs", "max_concurrent"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field}={getattr(self, field)} must be at least 1")

    @property
    def machines(self) -> Machines:
        """Machines of each trial."""
        return Machines(workers=1, share_clips_gb=4.0)


@dataclass(frozen=True, kw_only=True)
class SeedReport:
    """The results of one seed."""

    promoted: float
    """Top-1 of the best trial that halving trained to the end."""
    grid: float
    """Top-1 of the best trial of the full grid."""
    epochs: int
    grid_epochs: int
    idle: float
    """Share of the machines' time, for `max_concurrent` trials, that no trial used during halving."""
    fresh: tuple[float, float] | None = None
    """Top-1 of both on videos that no trial has seen."""

    @property
    def behind(self) -> float:
        """Difference to the grid in points of top-1."""
        return 100 * (self.grid - self.promoted)

    @property
    def behind_fresh(self) -> float:
        """Difference to the grid in points of top-1, on videos that no trial has seen; nan if there were none."""
        promoted, grid = self.fresh or (math.nan, math.nan)
        return 100 * (grid - promoted)

    def __str__(self) -> str:
        return (
            f"promotion {self.promoted:.1%}, grid {self.grid:.1%} ({self.behind:.1f} points), {self.epochs} of "
            f"{self.grid_epochs} epochs ({self.epochs / self.grid_epochs:.0%}), idle {self.idle:.0%}"
            + (f"; on fresh videos {self.fresh[0]:.1%} and {self.fresh[1]:.1%}" if self.fresh else "")
        )


@dataclass(frozen=True, kw_only=True)
class CampaignBenchReport:
    """The results of all seeds."""

    settings: int
    max_concurrent: int
    seeds: tuple[SeedReport, ...]

    def __str__(self) -> str:
        lines = [f"seed {number}: {one}" for number, one in enumerate(self.seeds)]
        fresh = statistics.mean(one.behind_fresh for one in self.seeds)
        lines.append(
            f"{self.settings} settings, {self.max_concurrent} at once, mean of {len(self.seeds)} seeds: "
            f"{statistics.mean(one.behind for one in self.seeds):.1f} points behind the grid with "
            f"{statistics.mean(one.epochs / one.grid_epochs for one in self.seeds):.0%} of its epochs, idle "
            f"{statistics.mean(one.idle for one in self.seeds):.0%}"
            + (f"; on fresh videos {fresh:.1f} points behind" if not math.isnan(fresh) else "")
        )
        return "\n".join(lines)


def measure_campaign(recipe: Recipe, bench: CampaignBench, *, say: Callable[[str], None]) -> CampaignBenchReport:
    """Run both kinds of campaigns with every seed, one after the other."""
    manifest, folder = load_manifest(bench.data), storage.absolute(bench.folder)
    fresh = load_manifest(bench.fresh) if bench.fresh else None
    changes = {"loop.epochs": bench.epochs, "loop.evaluate_every_epochs": bench.epochs}
    base = recipe_for(recipe, manifest)
    seeds, settings = [], 0
    for seed in range(bench.seeds):
        seeded = replace_fields(base, {**changes, "loop.seed": seed})
        halving = How(
            rungs=bench.rungs,
            reduction_factor=bench.reduction_factor,
            min_promoted=bench.min_promoted,
            max_concurrent=bench.max_concurrent,
        )
        # Campaigns with other rungs are separate but share the same grid.
        names = (
            f"seed-{seed}-promotion-{bench.rungs}-{bench.reduction_factor}-{bench.min_promoted}",
            f"seed-{seed}-grid",
        )
        promotion = _campaign(seeded, manifest, bench, halving, storage.join(folder, names[0]), say)
        # Scored after every epoch, the grid serves jobs/bench.py policies as well.
        whole = replace_fields(seeded, {"loop.evaluate_every_epochs": 1})
        in_full = How(rungs=1, max_concurrent=bench.max_concurrent)
        grid = _campaign(whole, manifest, bench, in_full, storage.join(folder, names[1]), say)
        seeds.append(compared(promotion, grid, bench))
        if fresh:
            scored = _top1(promotion[0], fresh), _top1(_best(grid), fresh)
            seeds[-1] = dataclasses.replace(seeds[-1], fresh=scored)
        settings = len(grid)
        say(f"seed {seed}: {seeds[-1]}")
    report = CampaignBenchReport(settings=settings, max_concurrent=bench.max_concurrent, seeds=tuple(seeds))
    if bench.json:
        Path(bench.json).write_text(json.dumps(dataclasses.asdict(report), indent=1))
    return report


def _campaign(
    recipe: Recipe, manifest: Manifest, bench: CampaignBench, how: How, uri: str, say: Callable[[str], None]
) -> list[Trial]:
    name = storage.name(uri)
    local = storage.absolute("runs") if storage.is_s3(uri) else storage.absolute(bench.folder)
    store = tracking.local_uri(local)
    tracked = tracking.begin(store, "bench", name, parameters={}, tags={})
    campaign = Campaign(
        recipe=recipe,
        manifest=manifest,
        machines=bench.machines,
        uri=uri,
        name=name,
        tracking_uri=store,
        experiment="bench",
        parent_run=tracked.run_id,
        max_bad=Fraction(0),
        session=uuid.uuid4().hex,
    )
    fields = space("none", recipe, bench.vary)
    wanted = campaigns.search_for(campaign, fields, searcher="grid", samples=0, seed=0, wave=0, objectives="top1")
    outcome = campaigns.run(campaign, wanted, how, say=say)
    tracked.end("FINISHED")
    return outcome.trials


def compared(promotion: Sequence[Trial], grid: Sequence[Trial], bench: CampaignBench) -> SeedReport:
    """Put the results of one seed together. Raises TrainingError if a trial failed."""
    failed = [f"{trial.name}: {trial.failure}" for trial in (*promotion, *grid) if trial.failure]
    if failed:
        raise TrainingError("trials failed, so nothing is compared:\n  " + "\n  ".join(failed[:5]))
    spent = hours(promotion, bench.epochs, bench.max_concurrent)
    return SeedReport(
        promoted=promotion[0].score,
        grid=_best(grid).score,
        epochs=spent.epochs,
        grid_epochs=sum(trial.epochs for trial in grid),
        idle=spent.idle,
    )


def _best(grid: Sequence[Trial]) -> Trial:
    return max(grid, key=lambda trial: trial.score)


def _top1(trial: Trial, manifest: Manifest) -> float:
    """Score a trial's last checkpoint on the validation videos and return its top-1."""
    videos = manifest.select("val")
    table = predict.score_videos(trial.points[-1].checkpoint, videos, parse_views("1x1"), Resources(workers=2))
    return predict.summarise(table, videos.label_sets)["top1"]
