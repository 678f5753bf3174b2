"""Preparing a dataset: what `jobs/prepare.py` does, for Python. Runs on the driver."""

from __future__ import annotations

from tpn_ray.job import goes_on

import shlex
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from tpn_ray import session, storage
from tpn_ray.budget import MAX_BAD, parse_share
from tpn_ray.datasets.annotations import load_annotated
from tpn_ray.datasets.manifest import Manifest, load_manifest
from tpn_ray.errors import ConfigError
from tpn_ray.meter import StatusLine
from tpn_ray.prepare import preparing
from tpn_ray.prepare.layout import ShardConfig
from tpn_ray.prepare.messages import progress_line, summary_lines
from tpn_ray.resources import Decoding
from tpn_ray.sandbox.process import SandboxLimits
from tpn_ray.storage import PATIENCE_SECONDS
from tpn_ray.videos.encode import EncodeConfig


@dataclass(frozen=True, kw_only=True)
class PreparationJob:
    """Where the videos come from and where the dataset goes. Give --data, or --format, --annotations, and --videos."""

    out: str
    """Folder or s3://bucket/prefix for the dataset. The same command with the same --out resumes where it stopped."""

    data: str = ""
    """Folder with one subfolder per class (below train/ and val/, or split automatically), or CSV uri,label[,split];
    uri,labels[,split] for several classes a video, between semicolons."""

    format: str = ""
    """Format of published annotations: kinetics, something-v1, something-v2, jester, epic, ucf101, hmdb51, diving48,
    finegym, charades, or mmaction."""

    annotations: tuple[str, ...] = ()
    """Annotation files for --format, such as train.csv val.csv. Without a split column, the file names give the
    split."""

    label_map: tuple[str, ...] = ()
    """Class names for --format in their published order: labels.json, a list of names, or EPIC's two class files."""

    videos: str = ""
    """Folder of the videos that --annotations name."""

    val_fraction: float = 0.2
    """Share of each class assigned to "val" if no splits are given."""

    max_bad: str = MAX_BAD
    """Share of the videos that may be unusable before the job stops, such as 1% or 0.01."""

    address: str = ""
    """Ray cluster to join; if empty, RAY_ADDRESS (set by `ray job submit`), or else a local Ray."""

    storage_seconds: float = PATIENCE_SECONDS
    """Longest wait for storage that does not answer or refuses (503) while the job runs; at startup it is 10 s."""

    encode: Annotated[EncodeConfig, tyro.conf.arg(name="")] = field(default_factory=EncodeConfig)
    shards: Annotated[ShardConfig, tyro.conf.arg(name="")] = field(default_factory=ShardConfig)
    decoding: Annotated[Decoding, tyro.conf.arg(name="")] = field(default_factory=Decoding)
    limits: Annotated[SandboxLimits, tyro.conf.arg(name="")] = field(default_factory=SandboxLimits)


def prepare_dataset(job: PreparationJob) -> str:
    """Check every video, encode it again for fast decoding of clips, and pack shards; return the dataset's folder.

    The same job resumes where it stopped. Joins the Ray cluster at `job.address` or RAY_ADDRESS, or starts a local one,
    and stays connected. Raises a TpnRayError for anything the user can fix.
    """
    max_bad = parse_share(job.max_bad)
    manifest = _manifest(job)
    out = storage.absolute(job.out)
    storage.check_writable(out)
    goes_on(f"--out {shlex.quote(out)}")
    print(f"{len(manifest)} videos, version {manifest.version}; preparing into {out}", flush=True)
    session.connect(job.address, workers_cpus=0, decode_cpus=job.decoding.cpus, storage_seconds=job.storage_seconds)
    status = StatusLine()
    try:
        summary = preparing.run(
            manifest,
            out,
            job.encode,
            limits=job.limits,
            shards=job.shards,
            decoding=job.decoding,
            max_bad=max_bad,
            on_progress=lambda progress: status.show(progress_line(progress)),
        )
    finally:
        status.end()
    print("\n".join(summary_lines(summary, out)))
    return out


def _manifest(job: PreparationJob) -> Manifest:
    if bool(job.data) == bool(job.format):
        raise ConfigError("give either --data FOLDER_OR_CSV, or --format with --annotations and --videos")
    if job.data:
        return load_manifest(job.data, val_fraction=job.val_fraction)
    return load_annotated(job.format, job.annotations, job.videos, job.label_map)
