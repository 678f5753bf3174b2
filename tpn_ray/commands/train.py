"""A training run from its data to its scores: what `jobs/train.py` does, for Python. Runs on the driver."""

from __future__ import annotations

from tpn_ray.job import goes_on

import shlex
import sys
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated

import tyro

from tpn_ray import command_line, lease, names, report, session, storage, tracking
from tpn_ray.budget import MAX_BAD, parse_share
from tpn_ray.clips.views import Views, parse_views
from tpn_ray.datasets.manifest import Manifest, load_manifest
from tpn_ray.lease import Lease
from tpn_ray.model.sources import check_source
from tpn_ray.progress import Terminal, track
from tpn_ray.recipe import Recipe
from tpn_ray.storage import PATIENCE_SECONDS
from tpn_ray.training import run
from tpn_ray.training.events import Event
from tpn_ray.training.machines import Machines, check_division, fitted
from tpn_ray.training.run import RunResult, Stretch
from tpn_ray.training.run_plan import check_resumable, check_unchanged, checkpoint_to_extend, recipe_for
from tpn_ray.training.saving import Saving


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """All settings of a training run: the recipe is the science, and the other fields are the machinery."""

    data: str
    """Folder with one subfolder per class (below train/ and val/, or split automatically), a CSV uri,label[,split], or
    a prepared dataset."""

    storage: str = "runs"
    """Where checkpoints and scores go: a folder that every node sees, or s3://bucket/prefix."""

    name: str = ""
    """Name of the run. The name of an earlier run resumes it; if empty, a new name is chosen."""

    extend: str = ""
    """Run to go on from: a name in --storage, or a folder. A new run starts with its last weights, momenta, and
    position, and trains up to --loop.epochs, counted from its beginning."""

    tracking_uri: str = ""
    """MLflow server (http://...) or store; if empty, SQLite below --storage."""

    experiment: str = "tpn_ray"
    """MLflow experiment."""

    register: str = ""
    """Name of the MLflow model whose newest version the best checkpoint becomes."""

    address: str = ""
    """Ray cluster to join; if empty, RAY_ADDRESS (set by `ray job submit`), or else a local Ray."""

    storage_seconds: float = PATIENCE_SECONDS
    """Longest wait for storage that does not answer or refuses (503) while the job runs; at startup it is 10 s."""

    max_bad: str = MAX_BAD
    """Share of the videos that may be unusable before the run stops, such as 1% or 0.01."""

    max_failures: int = 3
    """Times in a row that workers may be lost, or fail, without a new checkpoint in between; below 0: any number. Nodes
    reclaimed by a cloud do not count. An error that the next workers would also meet ends the run at once."""

    views: str = "1x1"
    """Views in which the best checkpoint is scored at the end: CLIPSxCROPS, such as 10x3."""

    order_ledger: str = ""
    """Folder in which every worker records the clips that it trains on, for jobs/chaos.py to check."""

    machines: Annotated[Machines, tyro.conf.arg(name="")] = field(default_factory=lambda: Machines(workers=0))
    saving: Saving = field(default_factory=Saving)
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    """What to train, and how."""


def train(job: TrainingJob) -> RunResult:
    """Train a recipe, score its best checkpoint, and track both. Progress is printed.

    A run of the same name resumes from its last checkpoint, and ends with the same bits as one that was never stopped.
    Joins the Ray cluster at `job.address` or RAY_ADDRESS, or starts a local one, and stays connected. Raises a
    TpnRayError for anything the user can fix, before anything is trained where possible.
    """
    views = parse_views(job.views)
    max_bad = parse_share(job.max_bad)
    name = names.checked("--name", job.name or command_line.fresh_name("run"))
    if job.register:
        names.checked("--register", job.register)
    manifest = load_manifest(job.data)
    recipe = recipe_for(job.recipe, manifest)
    if job.machines.workers:
        check_division(job.machines, recipe)
    folder = storage.absolute(job.storage)
    storage.check_writable(folder)
    run_uri = storage.join(folder, name)
    extends = storage.absolute(storage.join(folder, job.extend) if "/" not in job.extend else job.extend)
    extends = extends if job.extend else ""
    begun = check_unchanged(run_uri, recipe, manifest, extends)
    start_from = checkpoint_to_extend(extends, recipe, manifest) if extends and not begun else ""
    if not begun and recipe.loop.weights:
        check_source(recipe.loop.weights)
    tracking.check(job.tracking_uri)
    print(f"{len(manifest)} videos of {job.data}, version {manifest.version}; run {name} in {folder}", flush=True)
    goes_on(f"--name {shlex.quote(name)}")
    wanted = fitted(job.machines, recipe, session.room())
    session.connect(
        job.address,
        workers_cpus=wanted.workers * wanted.per_worker.cpus,
        decode_cpus=wanted.decoding.cpus,
        storage_seconds=job.storage_seconds,
    )
    machines = fitted(job.machines, recipe, session.room())
    run.check_machines(machines, recipe)
    # Only now is anything written: what is refused leaves nothing behind.
    with lease.held(run_uri, f"run {name}") as held:
        stretch = Stretch(start_from=start_from, extends=extends)
        return _train(job, recipe, manifest, machines, stretch, folder, name, views, max_bad, held)


def _train(
    job: TrainingJob,
    recipe: Recipe,
    manifest: Manifest,
    machines: Machines,
    stretch: Stretch,
    folder: str,
    name: str,
    views: Views,
    max_bad: Fraction,
    held: Lease,
) -> RunResult:
    check_resumable(storage.join(folder, name), recipe, manifest, stretch.extends)
    tracked = report.begin(job.tracking_uri, job.experiment, name, folder, recipe, manifest, machines, job.data)
    status = "FAILED"
    try:
        terminal = Terminal()

        def on_event(event: Event) -> None:
            terminal(event)
            track(tracked, event)

        result = run.train(
            recipe,
            manifest,
            machines,
            storage_uri=folder,
            name=name,
            on_event=on_event,
            saving=job.saving,
            max_bad=max_bad,
            max_failures=job.max_failures,
            stretch=stretch,
            data=storage.absolute(job.data),
            order_ledger=storage.absolute(job.order_ledger) if job.order_ledger else "",
            token=held.token,
            look=held.look,
        )
        report.finish(tracked, result, manifest.select("val"), views, machines, storage.join(folder, name))
        if job.register:
            report.register(tracked, job.register, result, manifest)
        status = "FINISHED"
        return result
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if not tracked.end(status):
            print(f"warning: {tracked.failures} messages to MLflow failed; its curves may have gaps", file=sys.stderr)
