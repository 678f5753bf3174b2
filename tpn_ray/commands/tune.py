"""A tuning campaign from its search space to its report: what `jobs/tune.py` does, for Python. Runs on the driver."""

from __future__ import annotations

from tpn_ray.job import goes_on

import contextlib
import dataclasses
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from tpn_ray import command_line, lease, names, output, recipes, report, session, storage, tracking
from tpn_ray.budget import MAX_BAD, parse_share
from tpn_ray.commands.train import TrainingJob
from tpn_ray.datasets.manifest import Manifest, load_manifest
from tpn_ray.errors import BudgetError
from tpn_ray.lease import Lease
from tpn_ray.output import program
from tpn_ray.recipe import Recipe
from tpn_ray.storage import PATIENCE_SECONDS
from tpn_ray.tracking import TrackedRun
from tpn_ray.training.machines import Machines, check_division
from tpn_ray.training.run_plan import recipe_for
from tpn_ray.tuning import campaigns, leaderboard, live, watch
from tpn_ray.tuning.campaigns import Callback, CampaignOutcome
from tpn_ray.tuning.halving import Search
from tpn_ray.tuning.how import How, cost, fidelity_of
from tpn_ray.tuning.journal import Trial
from tpn_ray.tuning.space import Space, apply, space
from tpn_ray.tuning.trial import Campaign


@dataclass(frozen=True, kw_only=True)
class TuningJob:
    """All settings of a campaign: what to vary, how often, and on which machines."""

    data: str
    """Folder of videos, CSV, or prepared dataset, as for training."""

    samples: int = 16
    """Number of trials. With a grid: the maximum number of combinations, and 0 for all."""

    space: str = ""
    """Search space: lambda_alpha, schedule, flow_and_levels, or all; join several with +. If empty: all, or none
    with --vary."""

    vary: tuple[str, ...] = ()
    """Fields to vary, each as FIELD=DISTRIBUTION: optim.lr=loguniform(0.01,1) model.alpha=choice((1,2),(4,8))
    augment.flip=uniform(0,0.5) clip.frames=whole(4,16)."""

    searcher: str = "random"
    """Search algorithm: random, grid, or tpe (a model of the scores so far)."""

    objectives: str = "top1"
    """What to optimize: top1 (mAP, where videos have several classes), or top1+gmacs (that against arithmetic)."""

    wave: int = 0
    """halving: number of trials suggested together; 0: all, or for a model as many as leave one at the end."""

    how: Annotated[How, tyro.conf.arg(name="")] = field(default_factory=How)

    seed: int = 0
    """Seed for the samples."""

    estimate: bool = False
    """Only train one epoch and report what the campaign would take."""

    storage: str = "runs"
    """Where the trials' checkpoints go: a folder that every node sees, or s3://bucket/prefix."""

    name: str = ""
    """Name of the campaign. The name of an earlier campaign resumes it; if empty, a new name is chosen."""

    tracking_uri: str = ""
    """MLflow server (http://...) or store; if empty, SQLite below --storage."""

    experiment: str = "tpn_ray"
    """MLflow experiment."""

    address: str = ""
    """Ray cluster to join; if empty, RAY_ADDRESS (set by `ray job submit`), or else a local Ray."""

    storage_seconds: float = PATIENCE_SECONDS
    """Longest wait for storage that does not answer or refuses (503) while the job runs; at startup it is 10 s."""

    max_bad: str = MAX_BAD
    """Share of the videos that may be unusable before a trial stops, such as 1% or 0.01."""

    machines: Annotated[Machines, tyro.conf.arg(name="")] = field(
        default_factory=lambda: Machines(workers=1, share_clips_gb=4.0)
    )
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    """The recipe to vary."""


def tune(
    job: TuningJob,
    *,
    callbacks: Sequence[Callback] = (),
    recipe_name: str = "RECIPE",
    again: str = "",
) -> CampaignOutcome | None:
    """Search the settings of a recipe. Progress is printed, and the report is written to storage and MLflow.

    A campaign of the same name resumes where it stopped and trains nothing twice. Ray Tune calls the `callbacks`, which
    it stores, so they must be picklable. Its `ResultGrid` is the outcome's `results`. `recipe_name` and `again` appear
    in the commands that the report shows: how to train the best settings, and how to resume. Returns None for
    `job.estimate`. Raises BudgetError when its hours are spent; nothing is lost.
    """
    max_bad = parse_share(job.max_bad)
    name = names.checked("--name", job.name or command_line.fresh_name("tune"))
    manifest = load_manifest(job.data)
    recipe = recipe_for(job.recipe, manifest)
    check_division(job.machines, recipe)
    searched = space(job.space or ("none" if job.vary else "all"), recipe, job.vary)
    folder = storage.absolute(job.storage)
    storage.check_writable(folder)
    tracking.check(job.tracking_uri)
    campaign = Campaign(
        recipe=recipe,
        manifest=manifest,
        data=storage.absolute(job.data),
        machines=job.machines,
        uri=storage.join(folder, name),
        name=name,
        tracking_uri=job.tracking_uri,
        experiment=job.experiment,
        max_bad=max_bad,
        session=command_line.fresh_name("session"),
        fidelity=fidelity_of(recipe, job.how),
    )
    wanted = campaigns.search_for(
        campaign,
        searched,
        searcher=job.searcher,
        samples=job.samples,
        seed=job.seed,
        wave=job.wave,
        objectives=job.objectives,
    )
    campaigns.check(campaign, wanted, job.how)
    goes_on(f"--name {shlex.quote(name)}")
    session.connect(
        job.address,
        workers_cpus=job.machines.workers * job.machines.per_worker.cpus * max(job.how.max_concurrent, 1),
        decode_cpus=2 * job.machines.decoding.cpus * max(job.how.max_concurrent, 1),
        storage_seconds=job.storage_seconds,
    )
    campaigns.max_concurrent(campaign, job.how)

    def command(trials: Sequence[Trial]) -> str:
        return best_command(job, trials, recipe, manifest, recipe_name)

    again = again or f"tpn_ray.tune() with the name {name}"
    # Only now is anything written: what is refused leaves nothing behind.
    with lease.held(campaign.uri, f"campaign {name}") as held:
        campaign = dataclasses.replace(campaign, token=held.token)
        return _search(job, campaign, searched, wanted, folder, held, callbacks, command, again)


def _search(
    job: TuningJob,
    campaign: Campaign,
    searched: Space,
    wanted: Search,
    folder: str,
    held: Lease,
    callbacks: Sequence[Callback],
    command: Callable[[Sequence[Trial]], str],
    again: str,
) -> CampaignOutcome | None:
    recipe, manifest = campaign.recipe, campaign.manifest
    tracked = report.begin(
        job.tracking_uri, job.experiment, campaign.name, folder, recipe, manifest, job.machines, job.data
    )
    campaign = dataclasses.replace(campaign, tracking_uri=tracked.tracking_uri, parent_run=tracked.run_id)
    status = "FAILED"
    try:
        if job.estimate:
            campaigns.estimate(campaign, wanted, job.how, say=leaderboard.say)
            status = "FINISHED"
            return None
        with _watched(job, campaign, searched, wanted, tracked, command, again):
            outcome = campaigns.run(campaign, wanted, job.how, say=leaderboard.say, look=held.look, callbacks=callbacks)
        leaderboard.show(outcome, campaign, searched, command=command(outcome.trials), again=again, tracked=tracked)
        status = "KILLED" if outcome.paused else "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracked.end(status)
    if outcome.paused:
        raise BudgetError(outcome.paused)
    return outcome


@contextlib.contextmanager
def _watched(
    job: TuningJob,
    campaign: Campaign,
    searched: Space,
    wanted: Search,
    tracked: TrackedRun,
    command: Callable[[Sequence[Trial]], str],
    again: str,
) -> Iterator[None]:
    """Keep dashboards, the terminal, MLflow's curve, and the report up while the campaign runs."""
    whole, takes = campaign.recipe.loop.epochs, cost(campaign, wanted, job.how)
    extent = live.Extent(
        name=campaign.name,
        trials=wanted.samples,
        epochs=takes.epochs,
        in_full=whole,
        max_concurrent=campaigns.max_concurrent(campaign, job.how),
    )

    def write_report(known: Sequence[Trial]) -> None:
        trials, most = campaigns.table(known), extent.max_concurrent
        found = leaderboard.findings(
            trials, campaign, searched, command=command(trials), again=again, max_concurrent=most
        )
        if found:
            leaderboard.write_report(found, campaign)

    def gauges(known: Sequence[Trial]) -> None:
        watch.show(campaign.name, known, trials=extent.trials, epochs=extent.epochs, in_full=whole)

    looks = (gauges, live.Curve(tracked), live.Reports(write_report, whole))
    with output.in_place() as show, watch.watched(campaign.journal, live.Display(extent, show), *looks):
        yield


def best_command(job: TuningJob, trials: Sequence[Trial], recipe: Recipe, manifest: Manifest, recipe_name: str) -> str:
    """Return the command that trains the best trial's settings to the same bits: on as many workers, with all flags
    that its user gave."""
    known = recipes.RECIPES.get(recipe_name)
    base = recipe_for(known(), manifest) if known else recipe
    best = apply(recipe, trials[0].sample) if trials else recipe
    wanted = TrainingJob(
        data=job.data, max_bad=job.max_bad, machines=dataclasses.replace(job.machines, share_clips_gb=0.0), recipe=best
    )
    flags = command_line.flags(wanted, TrainingJob(data="", recipe=base))
    return f"{program('python')} jobs/train.py {recipe_name} {flags}"
