"""Where does tempo vary, and does the pyramid gain there? `python jobs/tempo.py --data D --frames C`; see --help."""

from __future__ import annotations

from tpn_ray.job import run_job

import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from tpn_ray import command_line, session, storage
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
    """The paper's section 4.3 on a dataset of one's own."""

    data: str
    """As for jobs/train.py."""

    frames: str
    """Checkpoint of a TSN (recipe toy_frames, k400_tsn_r50 with --model.neck none): what single frames tell."""

    first: tuple[str, ...] = ()
    """Checkpoint of the baseline, or several of it with different seeds; with --second, the gain of each class and the
    accuracy at other speeds are shown."""

    second: tuple[str, ...] = ()
    """Checkpoint of the network that is hoped to be better, trained with the same clips."""

    split: str = "val"
    """train, val or test."""

    samples: int = 64
    """Single frames of each video, evenly spread."""

    strides: tuple[int, ...] = ()
    """Strides to score both at, such as 2 4 6 8 10 12 14 16; by default not."""

    classes_per_bin: int = 10
    """Classes in a bin of the figure of gains."""

    out: str = "runs/tempo"
    """Folder for tempo.parquet, report.html, report.json and the figures; on disk or s3://."""

    tracking_uri: str = ""
    """MLflow server (http://...) or store (sqlite:///...) to log to; by default none."""

    experiment: str = "tpn_ray"
    """MLflow experiment."""

    address: str = ""
    """Ray cluster to join; by default RAY_ADDRESS (set by `ray job submit`), else a local Ray."""

    storage_seconds: float = PATIENCE_SECONDS
    """Longest wait for storage that does not answer or refuses (503), once the job runs; at its start it is 10 s."""

    resources: Annotated[Resources, tyro.conf.arg(name="")] = field(default_factory=Resources)


def main() -> None:
    flags = command_line.parse(
        Arguments(data=tyro.MISSING, frames=tyro.MISSING),
        sys.argv[1:],
        program=PROGRAM,
        description="Visual tempo of each video, its variance in each class, and one network's gain over another.",
    )
    if bool(flags.first) != bool(flags.second):
        raise ConfigError("give --first and --second, or neither of them")
    scoring.check_frames(flags.frames)
    folder, resources = storage.absolute(flags.out), flags.resources
    manifest = load_manifest(flags.data, for_training=False).select(flags.split)
    storage.check_writable(folder)
    parameters = {name: getattr(flags, name) for name in ("data", "frames", "first", "second", "split")}
    session.connect(
        flags.address,
        workers_cpus=resources.workers * resources.per_worker.cpus,
        decode_cpus=resources.decoding.cpus,
        storage_seconds=flags.storage_seconds,
    )
    run = track.begin(flags.tracking_uri, flags.experiment, f"tempo {storage.name(folder)}", parameters, {})
    question = scoring.TempoQuestion(
        frames=flags.frames,
        first=flags.first,
        second=flags.second,
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
    print("\n".join([*report.lines(), f"report, figures and numbers in {folder}"]), flush=True)


if __name__ == "__main__":
    run_job(main, leave=session.disconnect)
