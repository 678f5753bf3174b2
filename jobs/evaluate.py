"""Score a checkpoint on a dataset. `python jobs/evaluate.py --checkpoint C --data D`; `--help` shows all."""

from __future__ import annotations

from tpn_ray.job import run_job

import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from tpn_ray import command_line, session, storage
from tpn_ray.budget import MAX_BAD, parse_share
from tpn_ray.predict import evaluate, messages, track
from tpn_ray.resources import Resources
from tpn_ray.storage import PATIENCE_SECONDS

PROGRAM = "python jobs/evaluate.py"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What to score, on what, and how."""

    checkpoint: str
    """Folder of a checkpoint, as jobs/train.py prints it; on disk or s3://."""

    data: str
    """As for jobs/train.py. Its classes are matched with the checkpoint's by name."""

    split: str = "val"
    """train, val, test, or all."""

    views: tuple[str, ...] = ("1x1",)
    """1x1; 10x3 or 2x3 (CLIPSxCROPS); ten_crop; also `10x3 random`, `segments 8 ten_crop`, `1x1 stride 16`."""

    alpha: tuple[str, ...] = ()
    """Other temporal rates than the checkpoint's, such as 4,8; several, or `every`, are scored in one pass."""

    out: str = ""
    """Folder for the results, on disk or s3://; by default beside the checkpoint."""

    max_bad: str = MAX_BAD
    """Share of the videos that may be unusable before the job fails, after writing its results."""

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
    description = "Score every video of a split: exactly once, and with the same bits whatever the number of workers."
    flags = command_line.parse(
        Arguments(checkpoint=tyro.MISSING, data=tyro.MISSING), sys.argv[1:], program=PROGRAM, description=description
    )
    views, resources = " ".join(flags.views), flags.resources
    max_bad = parse_share(flags.max_bad)
    question = evaluate.ask(flags.checkpoint, flags.data, flags.split, views, flags.alpha)
    folder = storage.absolute(flags.out or evaluate.default_folder(flags.checkpoint, flags.split, views))
    storage.check_writable(folder)
    messages.announce(question)
    session.connect(
        flags.address,
        workers_cpus=resources.workers * resources.per_worker.cpus,
        decode_cpus=resources.decoding.cpus,
        storage_seconds=flags.storage_seconds,
    )
    name = f"evaluate {storage.name(folder)}"
    run = track.begin(flags.tracking_uri, flags.experiment, name, *track.about(question))
    with track.ended_by_errors(run):
        results = evaluate.evaluate(question, resources, folder)
    track.finish(run, results)
    messages.results(question, results)
    evaluate.refuse_budget(question, results, max_bad)


if __name__ == "__main__":
    run_job(main, leave=session.disconnect)
