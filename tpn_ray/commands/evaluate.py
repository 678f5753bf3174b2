"""Evaluation of a checkpoint on a dataset: what `jobs/evaluate.py` does, for Python. Runs on the driver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from tpn_ray import session, storage, tracking
from tpn_ray.budget import MAX_BAD, parse_share
from tpn_ray.predict import evaluate as scoring
from tpn_ray.predict import messages, track
from tpn_ray.predict.evaluate import Result
from tpn_ray.predict.predictor import Arithmetic
from tpn_ray.resources import Resources
from tpn_ray.storage import PATIENCE_SECONDS


@dataclass(frozen=True, kw_only=True)
class EvaluationJob:
    """What to score, on which data, and how."""

    checkpoint: str
    """Folder of a checkpoint, or of a run for its best one; on disk or s3://."""

    data: str
    """Folder of videos, CSV, or prepared dataset. Its classes are matched with the checkpoint's by name."""

    split: str = "val"
    """Split to score: train, val, test, or all."""

    views: tuple[str, ...] = ("1x1",)
    """Views of each video: 1x1, 10x3, or 2x3 (CLIPSxCROPS), or ten_crop; also `10x3 random`, `segments 8 ten_crop`,
    `1x1 stride 16`."""

    alpha: tuple[str, ...] = ()
    """Temporal rates to use instead of the checkpoint's, such as 4,8. Several, or `every`, are scored in one pass."""

    arithmetic: Annotated[Arithmetic, tyro.conf.arg(name="")] = field(default_factory=Arithmetic)

    out: str = ""
    """Folder for the results, on disk or s3://; if empty, beside the checkpoint."""

    max_bad: str = MAX_BAD
    """Share of the videos that may be unusable before the job fails, which it does after writing its results."""

    tracking_uri: str = ""
    """MLflow server (http://...) or store (sqlite:///...) to log to; if empty, none."""

    experiment: str = "tpn_ray"
    """MLflow experiment."""

    address: str = ""
    """Ray cluster to join; if empty, RAY_ADDRESS (set by `ray job submit`), or else a local Ray."""

    storage_seconds: float = PATIENCE_SECONDS
    """Longest wait for storage that does not answer or refuses (503) while the job runs; at startup it is 10 s."""

    resources: Annotated[Resources, tyro.conf.arg(name="")] = field(default_factory=Resources)


def evaluate(job: EvaluationJob) -> list[Result]:
    """Score every video of a split exactly once, with the same bits for any number of workers.

    Returns one result per alpha: its scores, its numbers, and the folder with both and the plots. Joins the Ray cluster
    at `job.address` or RAY_ADDRESS, or starts a local one, and stays connected. Raises a TpnRayError for anything the
    user can fix; if too many videos are bad, only after the results are written.
    """
    views, resources, max_bad = " ".join(job.views), job.resources, parse_share(job.max_bad)
    question = scoring.ask(job.checkpoint, job.data, job.split, views, job.alpha, job.arithmetic)
    folder = storage.absolute(job.out or scoring.default_folder(question.checkpoint, job.split, views))
    storage.check_writable(folder)
    tracking.check(job.tracking_uri)
    messages.announce(question)
    session.connect(
        job.address,
        workers_cpus=resources.workers * resources.per_worker.cpus,
        decode_cpus=resources.decoding.cpus,
        storage_seconds=job.storage_seconds,
    )
    name = f"evaluate {storage.name(folder)}"
    run = track.begin_evaluation(job.tracking_uri, job.experiment, name, question)
    with track.ended_by_errors(run):
        results = scoring.evaluate(question, resources, folder)
    track.finish(run, results, job.split)
    messages.results(question, results)
    scoring.refuse_budget(question, results, max_bad)
    return results
