"""The campaign: Tuner, searcher, scheduler, resume. Runs on the driver."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.tune
from ray.tune import schedulers

from tpn_ray import storage
from tpn_ray.errors import ConfigError, ResourceError
from tpn_ray.train.driver import Machines, check_feasible
from tpn_ray.tune.space import Space, apply
from tpn_ray.tune.trial import Campaign, run_trial

METRIC = "val_top1"
TRIAL_CPUS = 0.01
"""A trial's own process only waits; what its workers need they reserve themselves."""


def asha(campaign: Campaign) -> schedulers.TrialScheduler:
    """Asynchronous successive halving: at 1/9 and 1/3 of the epochs the worse two thirds stop (Li et al., 2020)."""
    loop = campaign.recipe.loop
    grace = max(loop.evaluate_every_epochs, math.ceil(loop.epochs / 9))
    return schedulers.ASHAScheduler(time_attr="epoch", max_t=loop.epochs, grace_period=grace, reduction_factor=3)


def no_scheduler(campaign: Campaign) -> schedulers.TrialScheduler:
    """Every trial runs to its end."""
    return schedulers.FIFOScheduler()


SCHEDULERS: dict[str, Callable[[Campaign], schedulers.TrialScheduler]] = {"asha": asha, "none": no_scheduler}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How one trial ended."""

    id: str
    sample: dict[str, Any]
    epochs: int
    top1: float
    """Its best validation top-1; -1 if it was never evaluated."""
    checkpoint: str
    mlflow_run: str
    error: str


def scheduler(name: str, campaign: Campaign) -> schedulers.TrialScheduler:
    """The scheduler of that name."""
    if name not in SCHEDULERS:
        raise ConfigError(f"unknown scheduler {name!r}; known: {', '.join(SCHEDULERS)}")
    return SCHEDULERS[name](campaign)


def cpus_per_trial(machines: Machines) -> float:
    """CPUs that a running trial needs: its workers, and a decoding task for each of its two datasets."""
    return machines.workers * machines.cpus_per_worker + 2 * machines.decode_cpus


def trials_at_once(machines: Machines, total: dict[str, float], wanted: int) -> int:
    """How many trials fit the cluster side by side, at most `wanted` (0: as many as fit)."""
    fit = int(total.get("CPU", 0.0) / cpus_per_trial(machines))
    if machines.gpus_per_worker:
        fit = min(fit, int(total.get("GPU", 0.0) / (machines.workers * machines.gpus_per_worker)))
    if machines.may_grow:
        return wanted or max(fit, 1)
    if fit < 1:
        raise ResourceError(
            f"not one trial fits: it needs {cpus_per_trial(machines):g} CPUs and "
            f"{machines.workers * machines.gpus_per_worker:g} GPUs, the cluster has {total.get('CPU', 0):g} and "
            f"{total.get('GPU', 0):g}; use fewer --workers or smaller --cpus-per-worker"
        )
    return min(fit, wanted) if wanted else fit


def run(
    campaign: Campaign,
    space: Space,
    *,
    samples: int,
    scheduler_name: str,
    at_once: int = 0,
    seed: int = 0,
    on_result: Callable[[str, dict[str, Any]], None] = lambda trial, result: None,
) -> list[Trial]:
    """Run the campaign, or go on with the one of this name; best trial first."""
    check_feasible(campaign.machines, campaign.recipe, ray.cluster_resources())
    apply(campaign.recipe, {name: _example(domain) for name, domain in space.items()})  # wrong names fail now
    trainable = ray.tune.with_resources(ray.tune.with_parameters(run_trial, campaign=campaign), {"CPU": TRIAL_CPUS})
    filesystem, path = storage.filesystem(storage.parent(campaign.uri), attempts=storage.MAX_ATTEMPTS)
    place = f"{path}/{campaign.name}"
    if ray.tune.Tuner.can_restore(place, storage_filesystem=filesystem):
        tuner = ray.tune.Tuner.restore(
            place, trainable, resume_unfinished=True, resume_errored=False, storage_filesystem=filesystem
        )
    else:
        tuner = ray.tune.Tuner(
            trainable,
            param_space=space,
            tune_config=ray.tune.TuneConfig(
                metric=METRIC,
                mode="max",
                num_samples=samples,
                search_alg=ray.tune.search.BasicVariantGenerator(
                    max_concurrent=trials_at_once(campaign.machines, ray.cluster_resources(), at_once),
                    random_state=seed,
                ),
                scheduler=scheduler(scheduler_name, campaign),
            ),
            run_config=ray.tune.RunConfig(
                name=campaign.name,
                storage_path=path,
                storage_filesystem=filesystem,
                verbose=0,
                callbacks=[_Watch(on_result)],
            ),
        )
    trials = [_trial(result) for result in tuner.fit()]
    return sorted(trials, key=lambda trial: (-trial.top1, trial.id))


def _example(domain: Any) -> Any:
    return domain.sample() if hasattr(domain, "sample") else domain


class _Watch(ray.tune.Callback):  # type: ignore[misc]  # Ray's classes are untyped here
    """Tells the job of every report, for its progress lines."""

    def __init__(self, on_result: Callable[[str, dict[str, Any]], None]) -> None:
        self.on_result = on_result

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        self.on_result(trial.trial_id, result)


def _trial(result: Any) -> Trial:
    history = result.metrics_dataframe
    metrics = result.metrics or {}
    evaluated = history is not None and METRIC in history
    best = history.loc[history[METRIC].idxmax()] if evaluated else None
    return Trial(
        id=str(metrics.get("trial_id", storage.name(result.path))),
        sample=dict(result.config or {}),
        epochs=int(history["epoch"].max()) if evaluated else 0,
        top1=float(best[METRIC]) if best is not None else -1.0,
        checkpoint=str(best["checkpoint"]) if best is not None else "",
        mlflow_run=str(metrics.get("mlflow_run", "")),
        error=str(result.error).strip().splitlines()[-1] if result.error else "",
    )
