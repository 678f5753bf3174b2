"""Preparing of a dataset over a cluster: Ray Data makes the missing shards, and the driver assembles the dataset.

What exists is never made again: a shard appears whole or not at all, and knows the settings it was made with. A job
that was stopped, by whatever means, therefore resumes when the same command is given again, and ends with the same
bytes. Runs on the driver.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import ray
import ray.data
import ray.data.exceptions
import ray.exceptions

from tpn_ray import errors, lease, mailbox, storage
from tpn_ray.budget import check_budget
from tpn_ray.data import dataset as data
from tpn_ray.datasets import reader
from tpn_ray.datasets import shards as shard_files
from tpn_ray.datasets.manifest import Manifest, load_manifest
from tpn_ray.datasets.shards import Bad, ShardSummary
from tpn_ray.errors import ConfigError, NotFoundError, ResourceError, StorageError, TpnRayError
from tpn_ray.lease import Lease
from tpn_ray.prepare import shard_maker
from tpn_ray.prepare.layout import ShardConfig, ShardPlan, difference, plan_shards, settings_hash, settings_of
from tpn_ray.prepare.shard_maker import PrepareJob, Totals
from tpn_ray.resources import Decoding
from tpn_ray.sandbox.process import SandboxLimits
from tpn_ray.sealed import seal, unseal
from tpn_ray.videos.encode import EncodeConfig

POLL_SECONDS = 0.5
FOOTER_READERS = 16
SHARD_SECONDS = 24 * 3600
"""Time without output after which Ray Data stops the job; a shard of long videos takes a while."""

SAMPLE_VIDEOS = 8
MEASURE_SECONDS = 600.0
"""Longest wait for the comparison at the end, which takes some seconds on a free worker."""
FAILURE = "failure"

LEFTOVER = re.compile(rf"\.({shard_files.CLAIM}|{shard_files.DATASET}|[a-z]+(-\d+)?\.parquet)\.[0-9a-f]{{32}}")
"""Names of files that this job was writing when it was killed, as `storage.write_bytes` makes them."""

OURS = re.compile(
    rf"(.*/)?{LEFTOVER.pattern}|{lease.FOLDER}/.*|{shard_files.SHARDS}/[a-z]+-\d+\.parquet|{shard_files.CLAIM}|"
    rf"{shard_files.DATASET}|{shard_files.INDEX}|{shard_files.QUARANTINE}"
)
"""Paths of files that such a job makes."""


@dataclass(frozen=True, kw_only=True)
class PrepareProgress:
    """Progress of the job."""

    videos_in_all: int
    before: int
    """Videos, good and bad, in shards that an earlier run had finished."""
    totals: Totals
    """Totals of this run."""
    bad: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What was made."""

    dataset: dict[str, Any]
    """The content of dataset.json."""
    quarantine: list[Bad]
    totals: Totals
    """Totals of this run, without what existed before."""
    seconds: float
    clip_seconds: tuple[float, float] | None
    """CPU seconds per clip before and after preparing; None if not measured."""


def run(
    manifest: Manifest,
    folder: str,
    encode: EncodeConfig,
    *,
    limits: SandboxLimits,
    shards: ShardConfig,
    decoding: Decoding,
    max_bad: Fraction,
    on_progress: Callable[[PrepareProgress], None],
) -> Summary:
    """Prepare every video of the manifest into `folder`. Raises BudgetError, LeaseError if another job is preparing
    into it, and other TpnRayErrors."""
    refuse_copied_segments(manifest, encode)
    if encode.flow:
        shard_maker.flow_preparer()
    refuse_foreign(folder)
    with lease.held(folder, f"dataset {storage.name(folder)}", flag="--out") as held:
        settings = settings_of(manifest, encode, limits, shards)
        claim(folder, settings)
        remove_leftovers(folder)
        return _prepare(manifest, folder, encode, limits, shards, decoding, max_bad, on_progress, settings, held)


def _prepare(
    manifest: Manifest,
    folder: str,
    encode: EncodeConfig,
    limits: SandboxLimits,
    shards: ShardConfig,
    decoding: Decoding,
    max_bad: Fraction,
    on_progress: Callable[[PrepareProgress], None],
    settings: dict[str, Any],
    held: Lease,
) -> Summary:
    begin = time.monotonic()
    plans = plan_shards(manifest, shards)
    done = finished(folder, plans, settings_hash(settings))
    known = {bad[0]: bad for summary in done.values() for bad in summary.bad}
    refuse_beyond_budget(known, len(manifest), max_bad)
    job = PrepareJob(
        manifest=manifest,
        shards=[plan for plan in plans if plan.name not in done],
        encode=encode,
        limits=limits,
        folder=storage.absolute(folder),
        settings_hash=settings_hash(settings),
        token=held.token,
    )
    before = sum(len(plan.rows) for plan in plans if plan.name in done)

    def watch(totals: Totals) -> None:
        held.look()
        bad = known | totals.bad
        seconds = time.monotonic() - begin
        on_progress(
            PrepareProgress(videos_in_all=len(manifest), before=before, totals=totals, bad=len(bad), seconds=seconds)
        )
        refuse_beyond_budget(bad, len(manifest), max_bad)

    totals = make_shards(job, decoding, watch) if job.shards else Totals()
    done = finished(folder, plans, settings_hash(settings))
    # The tasks' last reports may not have arrived while they ran; the shards have them all.
    refuse_beyond_budget({bad[0]: bad for summary in done.values() for bad in summary.bad}, len(manifest), max_bad)
    held.token.check()
    dataset = shard_files.write_dataset(folder, done, manifest.label_sets, settings, manifest.multi_label)
    return Summary(
        dataset=dataset,
        quarantine=sorted(bad for summary in done.values() for bad in summary.bad),
        totals=totals,
        seconds=time.monotonic() - begin,
        clip_seconds=measure_saving(manifest, folder, decoding),
    )


def refuse_beyond_budget(bad: dict[int, Bad], videos: int, max_bad: Fraction) -> None:
    """Raise BudgetError if more than the share `max_bad` of the `videos` are `bad`, given by row."""
    check_budget(
        bad,
        videos,
        max_bad,
        ((uri, reason, message) for _, uri, reason, message in sorted(bad.values())),
        "finished shards are kept, and the same command resumes",
    )


def refuse_copied_segments(manifest: Manifest, encode: EncodeConfig) -> None:
    """Raise ConfigError: a copied segment would have to start at a keyframe before it, and carry hidden frames."""
    if encode.copy and manifest.segments_seconds is not None:
        raise ConfigError(
            "--copy keeps whole files, but these are segments of longer videos, which begin between keyframes; leave "
            "it out, and to lose less of the pictures give a lower --crf (such as 17) and a larger --short-side-px"
        )


# --- what exists already


def refuse_foreign(folder: str) -> None:
    """Raise ConfigError if the folder holds something that no such job made."""
    root = storage.absolute(folder) + "/"
    try:
        files = storage.list_files(folder)
    except NotFoundError:
        return
    foreign = [file.uri for file in files if not OURS.fullmatch(file.uri.removeprefix(root))]
    if foreign and not storage.exists(storage.join(folder, shard_files.CLAIM)):
        raise ConfigError(
            f"{storage.absolute(folder)} is not empty and was not made by this job: it has {foreign[0]}; choose "
            "another --out"
        )


def claim(folder: str, settings: dict[str, Any]) -> None:
    """Make the folder this job's, or check that it is. Raises ConfigError if it holds something else."""
    refuse_foreign(folder)
    uri = storage.join(folder, shard_files.CLAIM)
    if storage.create(uri, seal(settings)):
        return
    remedy = "Delete it: the same command writes it again, and takes only shards made with the same settings"
    changed = difference(unseal(storage.read_bytes(uri), uri, remedy), settings)
    if changed:
        raise ConfigError(
            f"{storage.absolute(folder)} holds a dataset made with other settings or other videos:\n  "
            + "\n  ".join(changed)
            + "\nSet them back, or choose another --out"
        )


def finished(folder: str, plans: list[ShardPlan], settings: str) -> dict[str, ShardSummary]:
    """Return the planned shards that exist, by name. Raises StorageError for one that was made with other settings."""
    root = storage.join(folder, shard_files.SHARDS)
    names = {plan.name for plan in plans}
    files = storage.list_files(root) if storage.exists(root) else []
    mine = [file for file in files if storage.name(file.uri) in names]
    with ThreadPoolExecutor(FOOTER_READERS) as pool:
        summaries = list(pool.map(shard_files.read_summary, mine))
    for file, summary in zip(mine, summaries, strict=True):
        if summary.job != settings:
            raise StorageError(f"{file.uri} was made with other settings; delete it to have it made again")
    return {storage.name(file.uri): summary for file, summary in zip(mine, summaries, strict=True)}


def remove_leftovers(folder: str) -> None:
    """Remove half-written files of a run that was killed.

    Object stores show none; a lifecycle rule of the bucket removes the parts of an unfinished upload
    (docs/guide/videos.md).
    """
    if not storage.is_s3(folder):
        root = Path(storage.absolute(folder))
        for path in (*root.glob(".*"), *(root / shard_files.SHARDS).glob(".*")):
            if LEFTOVER.fullmatch(path.name):
                path.unlink(missing_ok=True)


# --- the work


def make_shards(job: PrepareJob, decoding: Decoding, watch: Callable[[Totals], None]) -> Totals:
    """Make all shards of the job. `watch` is called regularly and may raise to stop."""
    cpus = ray.cluster_resources().get("CPU", 0.0)
    if decoding.cpus > cpus and not decoding.may_grow:
        raise ResourceError(
            f"one task needs {decoding.cpus:g} CPUs, the cluster has {cpus:g}; use smaller --decode-cpus, "
            "or --may-grow if it adds nodes on demand"
        )
    told, meter = mailbox.beside_driver(), shard_maker.Meter()
    dataset = shard_dataset(ray.put(job), len(job.shards), decoding, told)
    failure: list[BaseException] = []

    def consume() -> None:
        try:
            for row in dataset.iter_rows():
                if row[FAILURE]:
                    raise rebuild(row[FAILURE])
        except BaseException as error:  # passed on to the calling thread
            failure.append(error)

    thread = threading.Thread(target=consume, name="prepare", daemon=True)
    thread.start()
    running = True
    while running:
        thread.join(POLL_SECONDS)
        running = thread.is_alive()  # read before taking, so that what was sent before the end is taken after it
        for finding in mailbox.take(told):
            meter.add(finding)
        watch(meter.totals)
    if failure and isinstance(failure[0], ray.data.exceptions.ExecutionTimeoutError):
        raise ResourceError(
            f"no shard was finished for {SHARD_SECONDS // 3600} hours: no node may be free for a task of "
            f"{decoding.cpus:g} CPUs (see `ray status`), or --shard-videos is too large; the same command resumes"
        ) from failure[0]
    if failure:
        raise failure[0]
    return meter.totals


def shard_dataset(source: ray.ObjectRef[PrepareJob], count: int, decoding: Decoding, told: Any) -> ray.data.Dataset:
    """Return one row per shard: why it could not be made, or nothing. Ray Data would pass on an error only as text."""
    data.configure_context()
    context = ray.data.DataContext.get_current()
    context.execution_no_progress_timeout_s = SHARD_SECONDS
    context.execution_options.preserve_order = False  # a slow shard holds no other back

    def make(numbers: dict[str, Any]) -> dict[str, Any]:
        job: PrepareJob = data.local_copy(source)
        try:
            for number in numbers["id"]:
                shard_maker.make_shard(job, int(number), told.put.remote)
        except TpnRayError as error:
            return {FAILURE: [f"{type(error).__name__}: {error}"]}
        return {FAILURE: [""]}

    return (
        ray.data.range(count, override_num_blocks=-(-count // data.NUMBERS_PER_READ))
        .repartition(target_num_rows_per_block=1)
        .map_batches(
            make,
            batch_size=None,
            num_cpus=decoding.cpus,
            compute=ray.data.TaskPoolStrategy(size=decoding.tasks or None),
            label_selector=decoding.labels or None,
        )
    )


def rebuild(failure: str) -> TpnRayError:
    """Return the project's error that "Name: message" describes."""
    name, _, message = failure.partition(": ")
    kind: type[TpnRayError] = getattr(errors, name)
    return kind(message)


# --- what it saves


def measure_saving(manifest: Manifest, folder: str, decoding: Decoding) -> tuple[float, float] | None:
    """Return CPU seconds per clip from sources and from prepared videos, measured on a sample on one worker of the
    cluster.

    None if nothing can be compared, or no worker did it in time: the dataset is complete without it.
    """
    pairs = sample_pairs(manifest, load_manifest(folder))
    if not pairs:
        return None
    where = decoding.labels or None
    measured = ray.remote(shard_maker.clip_seconds).options(num_cpus=decoding.cpus, label_selector=where).remote(pairs)
    try:
        seconds: tuple[float, float] = ray.get(measured, timeout=MEASURE_SECONDS)
    except (ray.exceptions.GetTimeoutError, ray.exceptions.RaySystemError, ray.exceptions.WorkerCrashedError):
        ray.cancel(measured, force=True)
        return None
    return seconds


def sample_pairs(source: Manifest, prepared: Manifest) -> list[tuple[bytes, bytes]]:
    """Return (source file, prepared video) pairs spread over the dataset. Segments have no file to compare with."""
    rows = {id: row for row, id in enumerate(source.ids)}
    step = max(1, len(prepared) // SAMPLE_VIDEOS)
    pairs, held = [], 0
    for number in range(0, len(prepared), step)[:SAMPLE_VIDEOS]:
        row = rows[prepared.ids[number]]
        size = int(source.sizes_bytes[row])
        if source.segments_seconds is None and held + size <= shard_maker.SAMPLE_SOURCE_BYTES:
            held += size
            with contextlib.suppress(TpnRayError):
                pairs.append((reader.fetch(source, row), reader.fetch(prepared, number)))
    return pairs
