"""Campaigns: their settings, and their course in Ray Tune. Runs on the driver."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.tune import Callback as Callback
from ray.tune import ResultGrid

from tpn_ray import lease, storage
from tpn_ray.data.dataset import node_labels
from tpn_ray.errors import BudgetError, ConfigError
from tpn_ray.names import no_such
from tpn_ray.recipe import to_plain
from tpn_ray.training.events import Committed, Event, Started
from tpn_ray.training.machines import Machines, check_division, check_feasible, decoding_task
from tpn_ray.training.run import Stretch, train
from tpn_ray.tuning import engine, rungs, schedulers, search
from tpn_ray.tuning.cost import gmacs
from tpn_ray.tuning.distributions import written
from tpn_ray.tuning.halving import Ladder, Search
from tpn_ray.tuning.how import HALVING, How, bracket_of, cost
from tpn_ray.tuning.journal import Trial
from tpn_ray.tuning.repeats import repeats
from tpn_ray.tuning.rungs import Bracket
from tpn_ray.tuning.space import Sample, Space, apply, problem
from tpn_ray.tuning.trial import Campaign

OBJECTIVES = ("top1", "top1+gmacs")
GRID_AT_MOST = 100_000


@dataclass(frozen=True, kw_only=True)
class CampaignOutcome:
    """The current results of a campaign."""

    trials: list[Trial]
    """Trials, best first, followed by repeats."""
    max_concurrent: int
    paused: str = ""
    """Why it has not reached its end; empty if it has."""
    results: ResultGrid | None = None
    """What Ray Tune returns: all trials but repeats, with the metrics of their evaluations; None if it is paused."""
    repeated: ResultGrid | None = None
    """The same of the repeats; None if there are none."""


def search_for(
    campaign: Campaign, space: Space, *, searcher: str, samples: int, seed: int, wave: int, objectives: str
) -> Search:
    """Build the search. A grid has at most as many samples as combinations. Raises ConfigError for unknown names."""
    if searcher not in search.SEARCHERS:
        raise ConfigError(no_such("searcher", searcher, search.SEARCHERS))
    if objectives not in OBJECTIVES:
        raise ConfigError(no_such("objectives", objectives, OBJECTIVES))
    if (samples < 1 and searcher != "grid") or samples < 0 or wave < 0:
        raise ConfigError(f"samples={samples} must be at least 1, and wave={wave} not negative")

    # Tune stores these functions; they must not hold the campaign, whose tracking server may be named with a password.
    recipe, fidelity = campaign.recipe, campaign.fidelity
    for name in fidelity.fields:
        if name in space:
            raise ConfigError(f"{name} cannot be both searched and what --fidelity changes from rung to rung")

    def is_valid(sample: Sample) -> bool:
        rungs = range(max(1, len(fidelity.epochs)))
        return not any(problem(recipe, {**sample, **fidelity.changes(rung)}) for rung in rungs)

    def value(trial: Trial, epoch: int) -> tuple[float, ...]:
        point = trial.at(epoch)
        score = point.score if point else -1.0
        return (score,) if objectives == "top1" else (score, -gmacs(apply(recipe, trial.sample)))

    if searcher == "grid":
        count = samples or GRID_AT_MOST
        question = search.Question(space=space, is_valid=is_valid, seen=[], first=0, count=count, seed=0)
        samples = len(search.grid(question))
    return Search(
        space=space,
        searcher=searcher,
        samples=samples,
        seed=seed,
        is_valid=is_valid,
        objectives=value,
        objectives_name=objectives,
        wave=wave,
    )


def cpus_per_trial(machines: Machines) -> float:
    """Return the CPUs that a running trial needs: those of its workers, and a decoding task's."""
    return machines.workers * machines.per_worker.cpus + decoding_task(machines)


def concurrent_trials(
    machines: Machines, total: dict[str, float], node_labels: Sequence[Mapping[str, str]], wanted: int
) -> int:
    """Return how many trials fit the cluster at the same time, at most `wanted` (0: as many as fit).

    Raises ResourceError, with what is needed and the flags that change it, if not one fits.
    """
    check_feasible(machines, total, node_labels)
    fit = int(total.get("CPU", 0.0) / cpus_per_trial(machines))
    if machines.per_worker.gpus:
        fit = min(fit, int(total.get("GPU", 0.0) / (machines.workers * machines.per_worker.gpus)))
    if machines.decoding.may_grow:
        return wanted or max(fit, 1)
    fit = max(fit, 1)  # with fewer workers than wanted, if it is elastic
    return min(fit, wanted) if wanted else fit


def settings(campaign: Campaign, wanted: Search, how: How) -> dict[str, Any]:
    """Return what must be unchanged for a campaign to resume. Repeats, budget, and machines may change."""
    return {
        "recipe": to_plain(campaign.recipe),
        "dataset_version": campaign.manifest.version,
        "space": {name: written(distribution) for name, distribution in wanted.space.items()},
        "searcher": wanted.searcher,
        "samples": wanted.samples,
        "seed": wanted.seed,
        "wave": wanted.wave,
        "objectives": wanted.objectives_name,
        "scheduler": how.scheduler,
        "rungs": how.rungs,
        "reduction_factor": how.reduction_factor,
        "min_promoted": how.min_promoted,
        **({"fidelity": campaign.fidelity.written} if campaign.fidelity.fields else {}),
    }


def estimate(campaign: Campaign, wanted: Search, how: How, *, say: Callable[[str], None]) -> None:
    """Report what the campaign would take, from one epoch of its recipe. Nothing of the campaign itself starts."""
    at_once = max_concurrent(campaign, how)
    begin, times = time.monotonic(), list[float]()

    def on_event(event: Event) -> None:
        if isinstance(event, Started | Committed):
            times.append(time.monotonic())

    name = "estimate"
    train(
        campaign.recipe,
        campaign.manifest,
        campaign.machines,
        storage_uri=campaign.uri,
        name=name,
        on_event=on_event,
        max_bad=campaign.max_bad,
        stretch=Stretch(until_epoch=1),
    )
    end = time.monotonic()
    storage.delete_folder(storage.join(campaign.uri, name))
    epoch = times[-1] - times[0]
    start = end - begin - epoch
    takes = cost(campaign, wanted, how)
    hours = takes.hours(start, epoch)
    say(f"{wanted.samples} trials of up to {campaign.recipe.loop.epochs} epochs: {takes}")
    say(
        f"measured alone: {start:.0f} s to start and end, {epoch:.1f} s for an epoch with its evaluation; the campaign "
        f"would take about {hours:.2g} hours of trials' time, {hours / at_once:.2g} hours with {at_once} "
        "at once (more where they share cores)"
    )


def check(campaign: Campaign, wanted: Search, how: How) -> None:
    """Refuse what can never run, and a campaign of this name with other settings. Nothing is written.

    Raises ConfigError and CheckpointError.
    """
    bracket_of(campaign.recipe, how)
    if wanted.searcher in search.MODELS and how.scheduler == "pbt":
        raise ConfigError(f"pbt mutates settings itself: use --searcher random or grid, not {wanted.searcher}")
    if how.scheduler != HALVING:
        schedulers.SCHEDULERS[how.scheduler](campaign, wanted)
    campaign.journal.compare(settings(campaign, wanted, how))


def max_concurrent(campaign: Campaign, how: How) -> int:
    """Return how many trials run at the same time. Raises ResourceError and ConfigError for what cannot run at all."""
    total = ray.cluster_resources()
    check_division(campaign.machines, campaign.recipe)
    return concurrent_trials(campaign.machines, total, node_labels(), how.max_concurrent)


def run(
    campaign: Campaign,
    wanted: Search,
    how: How,
    *,
    say: Callable[[str], None],
    look: Callable[[], None] = lambda: None,
    callbacks: Sequence[Callback] = (),
) -> CampaignOutcome:
    """Run the campaign, or resume the one of this name, to its end or until its hours are spent.

    It is written under the lease of `campaign.token`, and `look` raises when that is lost; without a token, the lease
    is taken here. Raises LeaseError when another job works on the campaign.
    """
    if campaign.token is not None:
        return _run_alone(campaign, wanted, how, callbacks, say, look)
    with lease.held(campaign.uri, f"campaign {campaign.name}", say=say) as held:
        return _run_alone(dataclasses.replace(campaign, token=held.token), wanted, how, callbacks, say, held.look)


def _run_alone(
    campaign: Campaign,
    wanted: Search,
    how: How,
    callbacks: Sequence[Callback],
    say: Callable[[str], None],
    lost: Callable[[], None],
) -> CampaignOutcome:
    check(campaign, wanted, how)
    at_once = max_concurrent(campaign, how)
    goes_on = campaign.journal.begin(settings(campaign, wanted, how))
    takes = cost(campaign, wanted, how)
    say(f"{wanted.samples} trials of up to {campaign.recipe.loop.epochs} epochs, {at_once} at once: {takes}")
    if goes_on:
        known = campaign.journal.trials()
        say(f"the campaign resumes: {sum(trial.epochs for trial in known)} epochs of {len(known)} trials are done")
    spent_all = budget_check(campaign, how.budget_hours)

    def look() -> None:
        lost()
        spent_all()

    common = {"max_concurrent": at_once, "callbacks": callbacks, "look": look, "say": say}
    try:
        results = _search(campaign, wanted, how, common)
        trials = _originals(campaign.journal.trials())
        repeated = _repeat(campaign, wanted, how, trials, common)
    except HoursSpentError as spent:
        trials = table(campaign.journal.trials())
        return CampaignOutcome(trials=trials, max_concurrent=at_once, paused=str(spent))
    trials = table(campaign.journal.trials())
    return CampaignOutcome(trials=trials, max_concurrent=at_once, results=results, repeated=repeated)


def _search(campaign: Campaign, wanted: Search, how: How, common: dict[str, Any]) -> ResultGrid:
    """Run all trials but repeats."""
    if how.scheduler == HALVING:
        ladder = Ladder(
            campaign.journal,
            wanted,
            bracket_of(campaign.recipe, how),
            max_concurrent=common["max_concurrent"],
            say=common["say"],
        )
        return _climb(campaign, ladder, campaign.session, common)
    return engine.fit(
        campaign,
        schedulers.SCHEDULERS[how.scheduler](campaign, wanted),
        engine.OneByOne(campaign.journal, wanted, campaign.recipe.loop.epochs),
        name=campaign.session,
        samples=wanted.samples,
        pauses=False,
        keeps_all=how.scheduler == "pbt",
        **common,
    )


def _repeat(
    campaign: Campaign, wanted: Search, how: How, trials: Sequence[Trial], common: dict[str, Any]
) -> ResultGrid | None:
    """Train the best of `trials` with more seeds, each in full."""
    loop = campaign.recipe.loop
    again = repeats(trials, best=how.repeat_best, seeds=how.repeats, first_seed=loop.seed, epochs=loop.epochs)
    if not again:
        return None
    ladder = Ladder(
        campaign.journal,
        wanted,
        Bracket(epochs=(loop.epochs,)),
        max_concurrent=common["max_concurrent"],
        say=common["say"],
        fixed=again,
    )
    return _climb(campaign, ladder, f"{campaign.session}-repeats", common)


def _climb(campaign: Campaign, ladder: Ladder, name: str, common: dict[str, Any]) -> ResultGrid:
    halving = schedulers.Halving(ladder)
    return engine.fit(campaign, halving, engine.Climbing(halving), name=name, samples=-1, pauses=True, **common)


def table(known: Sequence[Trial]) -> list[Trial]:
    """Return all trials that began: first the originals, best first, then the repeats."""
    return [*_originals(known), *(trial for trial in known if trial.repeat_of is not None)]


def _originals(known: Sequence[Trial]) -> list[Trial]:
    return rungs.ranked([trial for trial in known if trial.repeat_of is None])


class HoursSpentError(BudgetError):
    """The time of --budget-hours is spent."""


def _spent(trials: Sequence[Trial]) -> dict[str, tuple[float, float]]:
    """Return, by session, when its first trial started and its last one ended."""
    sessions: dict[str, tuple[float, float]] = {}
    for held in (held for trial in trials for held in trial.held):
        begin, end = sessions.get(held.session, (held.begin, held.end))
        sessions[held.session] = (min(begin, held.begin), max(end, held.end))
    return sessions


def budget_check(campaign: Campaign, budget_hours: float) -> Callable[[], None]:
    """Return a function that raises when the budget is spent, and does nothing if there is none."""
    earlier = sum(end - begin for begin, end in _spent(campaign.journal.trials()).values())
    begin = time.monotonic()

    def look() -> None:
        if budget_hours and earlier + time.monotonic() - begin > budget_hours * 3600:
            raise HoursSpentError(
                f"the {budget_hours:g} hours of --budget-hours are spent; nothing is lost: the same command with more "
                "of them resumes"
            )

    return look
