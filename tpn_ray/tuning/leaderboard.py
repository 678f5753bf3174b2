"""Output of a campaign: on the terminal, in its folder, and in MLflow. Runs on the driver."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from tpn_ray import storage, tracking
from tpn_ray.errors import TrainingError
from tpn_ray.meter import print_table
from tpn_ray.progress import duration
from tpn_ray.score import score_key
from tpn_ray.tracking import TrackedRun
from tpn_ray.tuning.campaigns import CampaignOutcome
from tpn_ray.tuning.cost import gmacs
from tpn_ray.tuning.journal import Trial
from tpn_ray.tuning.report import page
from tpn_ray.tuning.report.numbers import Findings, hours, interval_text, repeated, setting_text
from tpn_ray.tuning.space import Space, active, apply
from tpn_ray.tuning.trial import Campaign, begin_child

SHOWN = 20
"""Trials on the terminal; the report has all."""


def findings(
    trials: Sequence[Trial], campaign: Campaign, space: Space, *, command: str, again: str, max_concurrent: int
) -> Findings | None:
    """Return what a report shows of trials, best first; None if none has been evaluated.

    `command` trains the best trial's settings, and `again` runs the campaign.
    """
    originals = tuple(
        dataclasses.replace(trial, sample=active(campaign.recipe, trial.sample))
        for trial in trials
        if trial.repeat_of is None
    )
    if not any(trial.points for trial in originals):
        return None
    return Findings(
        name=campaign.name,
        command=command,
        campaign_command=again,
        space=space,
        epochs=campaign.recipe.loop.epochs,
        max_concurrent=max_concurrent,
        trials=originals,
        repeats=tuple(trial for trial in trials if trial.repeat_of is not None),
        gmacs={trial.number: gmacs(apply(campaign.recipe, trial.sample)) for trial in originals},
    )


def write_report(found: Findings, campaign: Campaign) -> dict[str, str]:
    """Write the report beside the results, and return its files' texts by name."""
    made = {"report.html": page.as_html(found), "report.md": page.as_markdown(found)}
    for name, text in made.items():
        storage.write_bytes(storage.join(campaign.uri, name), text.encode())
    return made


def show(
    outcome: CampaignOutcome, campaign: Campaign, space: Space, *, command: str, again: str, tracked: TrackedRun
) -> None:
    """Print the leaderboard and the best recipe, write the report beside the results, and log everything.

    `command` trains the best trial's settings, and `again` runs the campaign. Raises TrainingError if no trial was ever
    evaluated.
    """
    trials = outcome.trials
    found = findings(trials, campaign, space, command=command, again=again, max_concurrent=outcome.max_concurrent)
    if found is None:
        if outcome.paused:
            return
        first = next((trial.failure for trial in trials if trial.failure), "no message")
        raise TrainingError(f"no trial was evaluated; the first failed with: {first}")
    best = found.trials[0]
    for trial in trials:
        if not outcome.paused:
            settle(trial, campaign)
    _print(found, best)
    for name, text in write_report(found, campaign).items():
        tracked.log_text(text, name)
    rows = [
        {**vars(trial), "points": [vars(p) for p in trial.points], "held": None, "lineage": trial.history}
        for trial in trials
    ]
    tracked.log_json(rows, "leaderboard.json")
    tracked.log_text(command + "\n", "best_recipe.txt")
    numbers = hours(found.trials, found.epochs, found.max_concurrent)
    tracked.log_metrics(
        {
            f"val/best_{score_key(best.points[-1].scores).removeprefix('val_')}": best.score,
            "trials": float(len(found.trials)),
            "epochs_trained": float(numbers.epochs),
            "trial_hours": numbers.held,
            "idle_share": numbers.idle,
        },
        0,
    )
    if not outcome.paused:
        _register(campaign, best, tracked)
    tracked.set_tags({"best_checkpoint": best.points[-1].checkpoint, "best_command": command})
    print(f"the best recipe trains with\n  {command}\nits checkpoint is {best.points[-1].checkpoint}")
    if found.note:
        print(found.note)
    print(f"the report: {storage.join(campaign.uri, 'report.html')}")
    print(f"the campaign's page: {tracking.page_command(tracked.tracking_uri)}", flush=True)


def settle(trial: Trial, campaign: Campaign) -> None:
    """End the MLflow run of a trial that will not resume. If the server missed it, write it from the journal."""
    tags = {"epochs": str(trial.epochs), "lineage": "; ".join(trial.history)}
    if trial.points:
        tags["checkpoint"] = trial.points[-1].checkpoint
    status = "FAILED" if trial.failure else "FINISHED"
    if trial.mlflow_run:
        tracking.settle(campaign.tracking_uri, trial.mlflow_run, status, tags)
        return
    tracked = begin_child(campaign, trial, say)
    if tracked:
        for point in trial.points:
            scores = {name.replace("val_", "val/"): value for name, value in point.scores.items()}
            tracked.log_metrics({**scores, "epoch": float(point.epoch)}, point.epoch)
        tracked.set_tags(tags)
        tracked.end(status)


def _register(campaign: Campaign, best: Trial, tracked: TrackedRun) -> None:
    """Register the best checkpoint as a version of the model named after the campaign."""
    tags = {score_key(best.points[-1].scores): f"{best.score:.4f}", "trial": best.name, "epochs": str(best.epochs)}
    version = tracked.register_model(campaign.name, best.points[-1].checkpoint, tags)
    said = f"is version {version} of the model" if version else "could not be registered as the model"
    print(f"the best checkpoint {said} {campaign.name!r} in MLflow")


def _print(found: Findings, best: Trial) -> None:
    table = Table()
    for head in ("trial", best.score_name, "95 %", "epochs"):
        table.add_column(head, no_wrap=True)
    table.add_column("setting")
    for trial in found.trials[:SHOWN]:
        setting = setting_text(trial.sample)
        score = f"{trial.score:.1%}" if trial.points else "-"
        lines = "\n".join(part for part in (setting, trial.failure) if part)
        table.add_row(trial.name, score, interval_text(trial, digits=0), str(trial.epochs), escape(lines))
    print_table(table)
    if len(found.trials) > SHOWN:
        print(f"{len(found.trials) - SHOWN} more in the report")
    for row in repeated(found.trials, found.repeats):
        p = "" if row.p is None else f", {100 * row.difference:+.1f} points to the best (p {row.p:.2f})"
        print(f"trial-{row.number:04d} over {len(row.scores)} seeds: {row.mean:.1%} +- {100 * row.deviation:.1f}{p}")
    spent = hours(found.trials, found.epochs, found.max_concurrent)
    print(
        f"{spent.epochs} epochs trained, {spent.epochs / max(spent.epochs_in_full, 1):.0%} of all trials in full, in "
        f"{duration(spent.held * 3600)} of trials' time; idle {spent.idle:.0%}"
    )


def say(line: str) -> None:
    """Print one line at once."""
    print(line, flush=True)
