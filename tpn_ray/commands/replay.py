"""A finished run trained again, to see whether the same bits come out: what `jobs/replay.py` does, for Python. Runs on
the driver."""

from __future__ import annotations

from tpn_ray.job import goes_on

import re
import shlex
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Any

import tyro

from tpn_ray import checkpoint as checkpoints
from tpn_ray import lease, names, session, storage, tracking
from tpn_ray.budget import MAX_BAD, parse_share
from tpn_ray.datasets.manifest import Manifest, load_manifest
from tpn_ray.errors import CheckpointError, ConfigError
from tpn_ray.progress import Terminal
from tpn_ray.recipe import Recipe, from_plain, with_defaults
from tpn_ray.storage import PATIENCE_SECONDS
from tpn_ray.training import origin, run, run_folder
from tpn_ray.training.machines import Machines
from tpn_ray.training.origin import Origin
from tpn_ray.training.run import Stretch
from tpn_ray.training.run_plan import make_plan

RUN_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class ReplayJob:
    """A run to train again, and on which machines."""

    run: tyro.conf.Positional[str]
    """Folder of the run, on disk or s3://, or its id in MLflow."""

    data: str = ""
    """Dataset, if it has moved; its version must be the run's."""

    anyway: bool = False
    """Whether to train even with other code, packages, or workers, to see whether they change any bits."""

    storage: str = "runs"
    """Where the replay's checkpoints go: a folder that every node sees, or s3://bucket/prefix."""

    name: str = ""
    """Name of the replay; if empty, that of the run with -replay. A replay that was stopped resumes."""

    tracking_uri: str = ""
    """MLflow server (http://...) or store that knows the id; if empty, SQLite below --storage."""

    address: str = ""
    """Ray cluster to join; if empty, RAY_ADDRESS (set by `ray job submit`), or else a local Ray."""

    storage_seconds: float = PATIENCE_SECONDS
    """Longest wait for storage that does not answer or refuses (503) while the job runs; at startup it is 10 s."""

    max_bad: str = MAX_BAD
    """Share of the videos that may be unusable before the replay stops, such as 1% or 0.01."""

    machines: Annotated[Machines, tyro.conf.arg(name="")] = field(default_factory=lambda: Machines(workers=0))
    """With `workers` 0, the machines are those of the run, with all their flags."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What a replay found."""

    step: int
    """Step of the compared checkpoints."""
    recorded: str
    """SHA-256 of the run's weights (`checkpoint.weights_sha256`)."""
    replayed: str
    parted: str = ""
    """The first measurement that differs, in words; empty if none does."""

    @property
    def equal(self) -> bool:
        """Whether both have the same weights, bit for bit."""
        return self.recorded == self.replayed


@dataclass(frozen=True, kw_only=True)
class _Recorded:
    """The run as its folder describes it."""

    uri: str
    recipe: Recipe
    dataset_version: str
    extends: str
    origins: list[Origin]
    step: int
    epoch: int
    """Last epoch at whose end the run has a checkpoint, that of `step`."""


def replay(job: ReplayJob) -> Replay:
    """Train a run again from its own records, and compare the weights at the end of its last epoch.

    Raises ConfigError or CheckpointError, before anything is trained, with all that is missing or different: another
    version of the code or of the packages (with the commit to check out), another number of workers where that changes
    bits, another version of the dataset.
    """
    max_bad = parse_share(job.max_bad)
    run_uri = _folder_of(job)
    name = names.checked("--name", job.name or f"{storage.name(run_uri)}-replay")
    found, data = _recorded(run_uri), job.data
    machines = job.machines
    if found.origins:
        machines = machines if machines.workers else found.origins[0].machines
        data = data or found.origins[0].data
    manifest = _checked(found, job, machines, data)
    folder = storage.absolute(job.storage)
    if storage.join(folder, name) == found.uri:
        raise ConfigError(f"{found.uri} is the run itself; give the replay another --name or --storage")
    storage.check_writable(folder)
    goes_on(f"--name {shlex.quote(name)}")
    print(f"{found.uri} up to epoch {found.epoch} (step {found.step}), again as {name} in {folder}", flush=True)
    session.connect(
        job.address,
        workers_cpus=machines.workers * machines.per_worker.cpus,
        decode_cpus=machines.decoding.cpus,
        storage_seconds=job.storage_seconds,
    )
    run.check_machines(machines, found.recipe)
    return _train(found, manifest, machines, data, folder, name, max_bad)


def _train(
    found: _Recorded,
    manifest: Manifest,
    machines: Machines,
    data: str,
    folder: str,
    name: str,
    max_bad: Fraction,
) -> Replay:
    uri = storage.join(folder, name)
    begun = found.origins[0] if found.origins else origin.current(machines)
    with lease.held(uri, f"run {name}") as held:
        run.train(
            found.recipe,
            manifest,
            machines,
            storage_uri=folder,
            name=name,
            on_event=Terminal(),
            max_bad=max_bad,
            stretch=Stretch(
                until_epoch=found.epoch,
                start_from=begun.start_from,
                start_epoch=begun.start_epoch,
                extends=found.extends,
            ),
            data=data,
            token=held.token,
            look=held.look,
        )
    return Replay(
        step=found.step,
        recorded=checkpoints.weights_sha256(run_folder.checkpoint_uri(found.uri, found.step)),
        replayed=checkpoints.weights_sha256(run_folder.checkpoint_uri(uri, found.step)),
        parted=_first_difference(found.uri, uri, found.step),
    )


def _folder_of(job: ReplayJob) -> str:
    """Return the folder of the run that was asked for."""
    folder = storage.absolute(job.run)
    if not RUN_ID.fullmatch(job.run) or storage.exists(storage.join(folder, run_folder.ABOUT)):
        return folder
    beside = storage.join(storage.absolute(job.storage), "mlflow.db")
    if not job.tracking_uri and not storage.exists(beside):
        raise ConfigError(f"{job.run} is an id of MLflow, and there is no {beside}: give --tracking-uri, or --storage")
    tracking.check(job.tracking_uri)
    return tracking.storage_of(job.tracking_uri or f"{tracking.SQLITE}{beside}", job.run)


def _recorded(run_uri: str) -> _Recorded:
    if storage.exists(storage.join(run_uri, "campaign.json")):
        raise ConfigError(f"{run_uri} is a campaign; give one of its trials, such as {run_uri}/trial-0000")
    about = with_defaults(run_folder.about(run_uri))
    recipe = from_plain(about["recipe"])
    epochs = {record.step: record.epoch for record in run_folder.read_records(run_uri) if record.scores}
    whole = [step for step in run_folder.committed_steps(run_uri) if step in epochs]
    if not whole:
        raise CheckpointError(
            f"{run_uri} has no checkpoint at the end of an epoch to compare with; let the run go on to its end first"
        )
    checkpoints.verify(run_folder.checkpoint_uri(run_uri, whole[-1]))
    return _Recorded(
        uri=run_uri,
        recipe=recipe,
        dataset_version=about["dataset_version"],
        extends=about.get("extends", ""),
        origins=origin.read(run_uri),
        step=whole[-1],
        epoch=epochs[whole[-1]],
    )


def _checked(found: _Recorded, job: ReplayJob, machines: Machines, data: str) -> Manifest:
    """Return the dataset. Raises CheckpointError with everything that keeps the run from being trained again."""
    missing, different = list[str](), list[str]()
    if not found.origins:
        different.append("its folder does not say which code, packages, and machines trained it: it is older than that")
    else:
        now = origin.current(machines)
        different += origin.differences(found.origins, now, any_workers=found.recipe.loop.ordered_reduction)
        different += _remedies(found, now)
    if not machines.workers:
        missing.append("the number of workers is not on record: give --workers")
    if machines.min_workers and not found.recipe.loop.ordered_reduction:
        different.append(
            "its number of workers could change, which changes bits without --loop.ordered-reduction: give --workers"
        )
    starts = {one.start_from for one in found.origins}
    missing += [f"{start}, the checkpoint it started from, is gone" for start in starts if start and _is_gone(start)]
    if not data:
        missing.append("the place of its dataset is not on record: give --data")
    manifest = load_manifest(data) if data else None
    if manifest is not None and manifest.version != found.dataset_version:
        missing.append(
            f"dataset version {found.dataset_version} trained it, {data} has version {manifest.version} now: videos, "
            "labels, or splits have changed; give --data with the dataset as it was"
        )
    reasons = missing + ([] if job.anyway else different)
    if reasons or manifest is None:
        anyway = "" if missing else "\n--anyway trains all the same, and shows whether that changes any bits"
        raise CheckpointError(f"{found.uri} cannot be trained again as it was:\n  " + "\n  ".join(reasons) + anyway)
    plan = make_plan(found.recipe, manifest)
    if plan.first_step(found.epoch) != found.step and not any(starts):
        raise CheckpointError(
            f"{found.uri} ended epoch {found.epoch} with step {found.step}, and {data} gives it "
            f"{plan.first_step(found.epoch)} steps up to there"
        )
    return manifest


def _remedies(found: _Recorded, now: Origin) -> list[str]:
    """Return how to get back to the code that trained the run."""
    if any(one.code_sha256 == now.code_sha256 for one in found.origins):
        return []
    commits = sorted({one.commit for one in found.origins if one.commit})
    if not commits:
        return ["the commit of its code is not on record: it was trained outside a clone"]
    if now.commit in commits:
        return [f"its commit {now.commit[:12]} is checked out, but the files here or there were changed since"]
    again = shlex.join(["git", "worktree", "add", "--detach", "../replay", commits[-1]])
    return [f"to get its code: {again} && cd ../replay"]


def _is_gone(checkpoint: str) -> bool:
    return not storage.exists(storage.join(checkpoint, checkpoints.MANIFEST))


def _first_difference(then: str, now: str, step: int) -> str:
    """Return the first loss or score at which two runs part, up to a step."""
    before, after = _measured(then, step), _measured(now, step)
    for key in sorted(before.keys() & after.keys()):
        if before[key] != after[key]:
            return f"{key[1]} at step {key[0]}: {before[key]!r} then, {after[key]!r} now"
    return ""


def _measured(run_uri: str, until: int) -> dict[tuple[int, str], Any]:
    records = [record for record in run_folder.read_records(run_uri) if record.step <= until]
    losses = {
        (metrics.step, "loss"): metrics.values["loss"]
        for record in records
        for metrics in record.history
        if "loss" in metrics.values
    }
    return losses | {(record.step, name): value for record in records for name, value in record.scores.items()}


def as_rows(found: Replay) -> list[tuple[str, str]]:
    """Return the result as rows of a table."""
    rows = [("step", str(found.step)), ("weights then", found.recorded), ("weights now", found.replayed)]
    rows += [("parted at", found.parted)] if found.parted else []
    return [*rows, ("result", "the same weights, bit for bit" if found.equal else "other weights")]
