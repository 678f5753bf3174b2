"""Analyze where tempo varies, and whether the pyramid gains there. `python jobs/tempo.py --data D --frames C`"""

from __future__ import annotations

from tpn_ray.job import run_job

import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from tpn_ray import checkpoint, command_line, session, storage, tracking
from tpn_ray.datasets import toy_actions
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.errors import ConfigError
from tpn_ray.predict import track
from tpn_ray.resources import Resources
from tpn_ray.storage import PATIENCE_SECONDS
from tpn_ray.tempo import scoring

PROGRAM = "python jobs/tempo.py"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The analysis of the paper's section 4.3, on your own dataset."""

    data: str
    """Dataset, as for jobs/train.py."""

    frames: str
    """Checkpoint of a single-frame classifier (TSN): recipe toy_frames, or k400_tsn_r50 with --model.neck none."""

    first: tuple[str, ...] = ()
    """Checkpoint of the baseline, or several with different seeds. With --second, the gain of each class and the
    accuracy at other speeds are shown."""

    second: tuple[str, ...] = ()
    """Checkpoint of the network that is expected to be better, trained with the same clips."""

    split: str = "val"
    """Split to analyze: train, val, or test."""

    samples: int = 64
    """Number of evenly spaced frames of each video."""

    strides: tuple[int, ...] = ()
    """Strides to score both networks at, such as 2 4 6 8 10 12 14 16; if empty, none."""

    classes_per_bin: int = 10
    """Classes per bin in the figure of gains."""

    out: str = "runs/tempo"
    """Folder for tempo.parquet, report.html, report.json, and the figures, on disk or s3://."""

    tracking_uri: str = ""
    """MLflow server (http://...) or store (sqlite:///...) to log to; if empty, none."""

    experiment: str = "tpn_ray"
    """MLflow experiment."""

    address: str = ""
    """Ray cluster to join; if empty, RAY_ADDRESS (set by `ray job submit`), or else a local Ray."""

    storage_seconds: float = PATIENCE_SECONDS
    """Longest wait for storage that does not answer or refuses (503) while the job runs; at startup it is 10 s."""

    resources: Annotated[Resources, tyro.conf.arg(name="")] = field(default_factory=Resources)


def main() -> None:
    flags = command_line.parse(
        Arguments(data=tyro.MISSING, frames=tyro.MISSING),
        sys.argv[1:],
        program=PROGRAM,
        description="Measure each video's visual tempo, its variance by class, and one network's gain over another.",
    )
    if bool(flags.first) != bool(flags.second):
        raise ConfigError("give --first and --second, or neither of them")
    frames = checkpoint.find(flags.frames)
    first, second = (tuple(map(checkpoint.find, uris)) for uris in (flags.first, flags.second))
    scoring.check_frames(frames)
    folder, resources = storage.absolute(flags.out), flags.resources
    manifest = load_manifest(flags.data, for_training=False).select(flags.split)
    storage.check_writable(folder)
    tracking.check(flags.tracking_uri)
    parameters = {"data": flags.data, "frames": frames, "first": first, "second": second, "split": flags.split}
    session.connect(
        flags.address,
        workers_cpus=resources.workers * resources.per_worker.cpus,
        decode_cpus=resources.decoding.cpus,
        storage_seconds=flags.storage_seconds,
    )
    run = track.begin(flags.tracking_uri, flags.experiment, f"tempo {storage.name(folder)}", parameters, {})
    question = scoring.TempoQuestion(
        frames=frames,
        first=first,
        second=second,
        samples=flags.samples,
        strides=flags.strides,
        classes_per_bin=flags.classes_per_bin,
    )
    with track.ended_by_errors(run):
        tempos, report = scoring.analyse(question, manifest, toy_actions.known_tempos(flags.data), resources)
        scoring.write(folder, tempos, report)
    if run is not None:
        track.log_folder(run, folder)
        run.end("FINISHED")
    print("\n".join([*report.lines(), f"report, figures, and numbers in {folder}"]), flush=True)


if __name__ == "__main__":
    run_job(main, leave=session.disconnect)
