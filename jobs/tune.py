"""Search lambda, alpha and the schedule. `python jobs/tune.py toy --data FOLDER --samples 4`; `--help` shows all."""

from __future__ import annotations

from tpn_ray.job import goes_on, run_job

import shlex
import sys
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated

import tyro

from tpn_ray import command_line, lease, names, recipes, report, session, storage
from tpn_ray.budget import MAX_BAD, parse_share
from tpn_ray.datasets.manifest import Manifest, load_manifest
from tpn_ray.errors import BudgetError
from tpn_ray.lease import Lease
from tpn_ray.recipe import Recipe
from tpn_ray.redaction import redacted
from tpn_ray.storage import PATIENCE_SECONDS
from tpn_ray.train.machines import Machines, check_division
from tpn_ray.train.run_plan import recipe_for
from tpn_ray.tune import campaigns, leaderboard
from tpn_ray.tune.space import Space, space
from tpn_ray.tune.trial import Campaign

PROGRAM = "python jobs/tune.py"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What to vary, how often, on which machines."""

    data: str
    """As for jobs/train.py."""

    samples: int = 16
    """Trials; with a grid at most so many of its combinations, and 0 for all."""

    space: str = ""
    """lambda_alpha, schedule, flow_and_levels or all; several joined by +. By default all, or with --vary none."""

    vary: tuple[str, ...] = ()
    """Fields by name, each as FIELD=DISTRIBUTION: optim.lr=loguniform(0.01,1) model.alpha=choice((1,2),(4,8))
    augment.flip=uniform(0,0.5) clip.frames=whole(4,16)."""

    searcher: str = "random"
    """random, grid, or tpe (a model of what was seen)."""

    objectives: str = "top1"
    """top1, or top1+gmacs: accuracy against arithmetic."""

    wave: int = 0
    """halving: trials that are suggested together; 0: all, or for a model as many as leave one at the end."""

    how: Annotated[campaigns.How, tyro.conf.arg(name="")] = field(default_factory=campaigns.How)

    seed: int = 0
    """Of the samples."""

    estimate: bool = False
    """Only train one epoch, and say what the campaign would take."""

    storage: str = "runs"
    """Where the trials' checkpoints go: a folder that every node sees, or s3://bucket/prefix."""

    name: str = ""
    """Name of the campaign; the name of an earlier one continues it. By default a new one."""

    tracking_uri: str = ""
    """MLflow server (http://...) or store; by default SQLite below --storage."""

    experiment: str = "tpn_ray"
    """MLflow experiment."""

    address: str = ""
    """Ray cluster to join; by default RAY_ADDRESS (set by `ray job submit`), else a local Ray."""

    storage_seconds: float = PATIENCE_SECONDS
    """Longest wait for storage that does not answer or refuses (503), once the job runs; at its start it is 10 s."""

    max_bad: str = MAX_BAD
    """Share of the videos that may be unusable before a trial stops, such as 1% or 0.01."""

    machines: Annotated[Machines, tyro.conf.arg(name="")] = field(
        default_factory=lambda: Machines(workers=1, share_clips_gb=4.0)
    )
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]


def main() -> None:
    name, rest = command_line.take_recipe_name(sys.argv[1:], list(recipes.RECIPES), PROGRAM)
    default = Arguments(data=tyro.MISSING, recipe=recipes.recipe(name))
    flags = command_line.parse(default, rest, program=f"{PROGRAM} {name}", description=f"Search around {name}.")
    max_bad = parse_share(flags.max_bad)
    campaign_name = names.checked("--name", flags.name or command_line.fresh_name(f"{name}-tune"))
    manifest = load_manifest(flags.data)
    recipe = recipe_for(flags.recipe, manifest)
    check_division(flags.machines, recipe)
    searched = space(flags.space or ("none" if flags.vary else "all"), recipe, flags.vary)
    folder = storage.absolute(flags.storage)
    storage.check_writable(folder)
    goes_on(f"--name {shlex.quote(campaign_name)}")
    with lease.held(storage.join(folder, campaign_name), f"campaign {campaign_name}") as held:
        _search(flags, name, recipe, manifest, searched, folder, campaign_name, max_bad, held)


def _search(
    flags: Arguments,
    name: str,
    recipe: Recipe,
    manifest: Manifest,
    searched: Space,
    folder: str,
    campaign_name: str,
    max_bad: Fraction,
    held: Lease,
) -> None:
    session.connect(
        flags.address,
        workers_cpus=flags.machines.workers * flags.machines.per_worker.cpus * max(flags.how.max_concurrent, 1),
        decode_cpus=2 * flags.machines.decoding.cpus * max(flags.how.max_concurrent, 1),
        storage_seconds=flags.storage_seconds,
    )
    tracked = report.begin(flags.tracking_uri, flags.experiment, campaign_name, folder, recipe, manifest)
    status = "FAILED"
    try:
        campaign = Campaign(
            recipe=recipe,
            manifest=manifest,
            machines=flags.machines,
            uri=storage.join(folder, campaign_name),
            name=campaign_name,
            tracking_uri=tracked.tracking_uri,
            experiment=flags.experiment,
            parent_run=tracked.run_id,
            max_bad=max_bad,
            session=command_line.fresh_name("session"),
            fidelity=campaigns.fidelity_of(recipe, flags.how),
            token=held.token,
        )
        wanted = campaigns.search_for(
            campaign,
            searched,
            searcher=flags.searcher,
            samples=flags.samples,
            seed=flags.seed,
            wave=flags.wave,
            objectives=flags.objectives,
        )
        if flags.estimate:
            campaigns.estimate(campaign, wanted, flags.how, say=leaderboard.say)
            status = "FINISHED"
            return
        outcome = campaigns.run(campaign, wanted, flags.how, say=leaderboard.say, look=held.look)
        leaderboard.show(
            outcome,
            campaign,
            searched,
            recipe_name=name,
            data=flags.data,
            again=redacted(
                shlex.join([*PROGRAM.split(), *sys.argv[1:], *([] if flags.name else ["--name", campaign_name])])
            ),
            tracked=tracked,
        )
        status = "KILLED" if outcome.paused else "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracked.end(status)
    if outcome.paused:
        raise BudgetError(outcome.paused)


if __name__ == "__main__":
    run_job(main, leave=session.disconnect)
