"""Classify videos. `python jobs/predict.py --checkpoint C --videos URI ...`; `--help` shows all flags."""

from __future__ import annotations

from tpn_ray.job import run_job

import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from tpn_ray import checkpoint, command_line, session
from tpn_ray.clips.views import parse_views
from tpn_ray.meter import ProgressMeter
from tpn_ray.predict import answers, scoring
from tpn_ray.predict.predictor import Arithmetic
from tpn_ray.predict.videos import find_videos
from tpn_ray.recipe import from_plain
from tpn_ray.resources import Resources
from tpn_ray.storage import PATIENCE_SECONDS

PROGRAM = "python jobs/predict.py"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What to classify, with which checkpoint, and how."""

    checkpoint: str
    """Folder of a checkpoint, or of a run for its best one; on disk or s3://."""

    videos: tuple[str, ...]
    """Files, folders or prefixes, lists (.txt with one URI per line, .csv with a column uri), or a prepared dataset."""

    views: tuple[str, ...] = ("1x1",)
    """Views of each video, as for jobs/evaluate.py."""

    window_seconds: float = 0.0
    """Length of the windows into which long videos are cut, to be classified with their times; 0: whole videos."""

    hop_seconds: float = 0.0
    """Time between the starts of two windows; 0: they follow each other without a gap."""

    arithmetic: Annotated[Arithmetic, tyro.conf.arg(name="")] = field(default_factory=Arithmetic)

    top: int = 5
    """Number of classes in an answer."""

    out: str = answers.STDOUT
    """FILE.jsonl, or FILE.parquet, which also holds the scores of all classes, on disk or s3://; - is the terminal."""

    address: str = ""
    """Ray cluster to join; if empty, RAY_ADDRESS (set by `ray job submit`), or else a local Ray."""

    storage_seconds: float = PATIENCE_SECONDS
    """Longest wait for storage that does not answer or refuses (503) while the job runs; at startup it is 10 s."""

    resources: Annotated[Resources, tyro.conf.arg(name="")] = field(default_factory=Resources)


def main() -> None:
    flags = command_line.parse(
        Arguments(checkpoint=tyro.MISSING, videos=tyro.MISSING),
        sys.argv[1:],
        program=PROGRAM,
        description="Classify videos, or windows of long ones. For an unusable video, the answer gives the reason.",
    )
    views, resources = parse_views(" ".join(flags.views)), flags.resources
    answers.check_out(flags.out)
    uri = checkpoint.find(flags.checkpoint)
    saved = checkpoint.load(uri, parts=())
    recipe = from_plain(saved.recipe)
    manifest = find_videos(flags.videos, {name: tuple(classes) for name, classes in saved.label_sets.items()})
    print(f"{len(manifest)} videos, checkpoint {uri}, step {saved.step}", file=sys.stderr, flush=True)
    session.connect(
        flags.address,
        workers_cpus=resources.workers * resources.per_worker.cpus,
        decode_cpus=resources.decoding.cpus,
        storage_seconds=flags.storage_seconds,
    )
    if flags.window_seconds:
        hop = flags.hop_seconds or flags.window_seconds
        blocks = scoring.score_windows(
            uri,
            recipe,
            manifest,
            views,
            resources,
            window_seconds=flags.window_seconds,
            hop_seconds=hop,
            arithmetic=flags.arithmetic,
        )
    else:
        progress = ProgressMeter("videos classified", sys.stderr)  # the answers may be on standard output
        blocks = scoring.score(
            uri, recipe, manifest, views, resources, arithmetic=flags.arithmetic, on_progress=progress
        )
    count, bad = answers.write(answers.answers(manifest, blocks, flags.top), manifest, flags.out)
    print(f"{count} answers, {bad} of them for videos that could not be used", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_job(main, leave=session.disconnect)
