"""What a campaign found: a table, and the best recipe as a command. Runs on the driver."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from tpn_ray import tracking
from tpn_ray.errors import TrainingError
from tpn_ray.tracking import TrackedRun
from tpn_ray.tune.driver import METRIC, Trial
from tpn_ray.tune.space import apply, as_flags
from tpn_ray.tune.trial import Campaign


def show_result(trial: str, result: dict[str, Any]) -> None:
    """One line for each report."""
    if METRIC in result:
        print(f"trial {trial}  epoch {result['epoch']}  validation top-1 {result[METRIC]:.1%}", flush=True)


def show(trials: list[Trial], campaign: Campaign, *, recipe_name: str, data: str, tracked: TrackedRun) -> None:
    """Print the leaderboard and the best recipe; log both. Raises TrainingError if no trial was ever evaluated."""
    for trial in trials:
        if trial.mlflow_run and not trial.error:
            tags = {"epochs": str(trial.epochs), "best_checkpoint": trial.checkpoint}
            tracking.settle(campaign.tracking_uri, trial.mlflow_run, "FINISHED", tags)
    table = Table("trial", "top-1", "epochs", "setting", "")
    for trial in trials:
        score = f"{trial.top1:.1%}" if trial.top1 >= 0 else "-"
        table.add_row(trial.id, score, str(trial.epochs), setting(trial), trial.error)
    Console(width=160).print(table)
    best = trials[0]
    if best.top1 < 0:
        raise TrainingError(f"no trial was evaluated; the first failed with: {trials[0].error or 'no message'}")
    command = f"python jobs/train.py {recipe_name} --data {data} {flags(campaign, best)}".rstrip()
    print(f"the best recipe trains with\n  {command}\nits checkpoint is {best.checkpoint}")
    print(f"the campaign's page: {tracking.page_command(tracked.tracking_uri)}")
    rows = [{**vars(trial), "setting": setting(trial)} for trial in trials]
    tracked.log_json(rows, "leaderboard.json")
    tracked.log_text(command + "\n", "best_recipe.txt")
    tracked.log_metrics({"best/val_top1": best.top1, "trials": float(len(trials))}, 0)
    tracked.set_tags({"best_checkpoint": best.checkpoint, "best_command": command})


def setting(trial: Trial) -> str:
    """A sample in one short line."""
    shown = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in trial.sample.items()}
    return "  ".join(f"{name.split('.', 1)[1]}={value}" for name, value in shown.items())


def flags(campaign: Campaign, trial: Trial) -> str:
    """The trial's recipe as flags, rounded to what the sample holds."""
    return as_flags(campaign.recipe, apply(campaign.recipe, trial.sample))
