"""One trial: sample -> recipe -> a Ray Train run of its own -> reports to Tune. Runs in a Tune trial."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ray import tune

from tpn_ray import tracking
from tpn_ray.clips.manifest import Manifest
from tpn_ray.progress import track
from tpn_ray.train import driver
from tpn_ray.train.events import Committed, Event
from tpn_ray.train.recipe import Recipe, flat, to_plain
from tpn_ray.tune.space import apply


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """What all trials have in common."""

    recipe: Recipe
    manifest: Manifest
    machines: driver.Machines
    uri: str
    """Folder of the campaign; each trial's run is a folder below it."""
    name: str
    tracking_uri: str
    experiment: str
    artifact_root: str | None
    parent_run: str
    max_bad: float


def run_trial(sample: dict[str, Any], campaign: Campaign) -> None:
    """Train one sample; every evaluation is a report, which the scheduler may answer by ending this process."""
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    name = f"trial-{tune.get_context().get_trial_id()}"
    recipe = apply(campaign.recipe, sample)
    tracked = tracking.begin(
        campaign.tracking_uri,
        campaign.experiment,
        f"{campaign.name}-{name}",
        parameters=flat(recipe),
        tags={"storage": f"{campaign.uri}/{name}", **{f"sample.{key}": str(value) for key, value in sample.items()}},
        artifact_root=campaign.artifact_root,
        parent=campaign.parent_run,
    )
    tracked.log_json(to_plain(recipe), "recipe.json")

    def on_event(event: Event) -> None:
        track(tracked, event)
        if isinstance(event, Committed):  # after a report Tune may end this process at once
            metrics = {"epoch": event.epoch, "step": event.step, "checkpoint": event.checkpoint}
            tune.report({**metrics, **event.scores, "mlflow_run": tracked.run_id})

    try:
        driver.run(
            recipe,
            campaign.manifest,
            campaign.machines,
            storage_uri=campaign.uri,
            name=name,
            on_event=on_event,
            max_bad=campaign.max_bad,
        )
    except Exception:  # not what Tune raises to end a trial early: the campaign's driver settles those
        tracked.end("FAILED")
        raise
    tracked.end("FINISHED")
