"""Measure speed. `python jobs/bench.py decode|views|ingest|share|step|train|campaign|policies|multigrid --help`."""

from __future__ import annotations

from tpn_ray.job import run_job

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/ is not part of the package

from benchmarks.campaign import CampaignBench, measure_campaign
from benchmarks.decode import DecodeBench, measure_decode
from benchmarks.ingest import IngestBench, measure_ingest
from benchmarks.multigrid import MultigridBench, measure_multigrid
from benchmarks.policies import PoliciesBench, measure_policies
from benchmarks.share import ShareBench, measure_share
from benchmarks.step import StepBench, measure_step
from benchmarks.train import TrainBench, measure_train
from benchmarks.views import ViewsBench, measure_views
from tpn_ray import command_line, recipes, session
from tpn_ray.tuning.leaderboard import say


def step(
    bench: Annotated[StepBench, tyro.conf.arg(name="")],
    recipe: Annotated[str, tyro.conf.arg(help="Recipe whose network and clips to measure.")] = "toy",
) -> None:
    """Measure training steps and scoring in one process, in turns: precisions, eager and compiled, a matrix product."""
    print(measure_step(recipes.recipe(recipe), bench))


def decode(bench: Annotated[DecodeBench, tyro.conf.arg(name="")]) -> None:
    """Measure clips decoded per second per core: this package on prepared videos, other decoders on common formats."""
    print(measure_decode(bench))


def views(bench: Annotated[ViewsBench, tyro.conf.arg(name="")]) -> None:
    """Measure what all views of a video cost a decoding task, against decoding their frames once."""
    print(measure_views(bench))


def ingest(bench: Annotated[IngestBench, tyro.conf.arg(name="")]) -> None:
    """Measure training clips from storage to the training worker, stage by stage, and the cores that feed one GPU."""
    session.connect(bench.address, workers_cpus=1, decode_cpus=1)
    print(measure_ingest(bench))


def share(bench: Annotated[ShareBench, tyro.conf.arg(name="")]) -> None:
    """Measure what decoding costs several trials of a campaign that see the same clips, against one alone."""
    print(measure_share(bench))


def train(
    bench: Annotated[TrainBench, tyro.conf.arg(name="")],
    recipe: Annotated[str, tyro.conf.arg(help="Recipe to train.")] = "toy",
) -> None:
    """Measure clips/s of the same steps, in turns: Ray Train with Ray Data, and torchrun with a DataLoader."""
    session.connect(bench.address, workers_cpus=bench.workers * bench.cpus_per_worker, decode_cpus=1)
    print(measure_train(recipes.recipe(recipe), bench))


def campaign(
    bench: Annotated[CampaignBench, tyro.conf.arg(name="")],
    recipe: Annotated[str, tyro.conf.arg(help="Recipe to vary.")] = "toy_small",
) -> None:
    """Search a grid by successive halving and in full; report the gap, the share of the epochs, and the idle time."""
    session.connect(bench.address, workers_cpus=bench.max_concurrent, decode_cpus=2 * bench.max_concurrent)
    print(measure_campaign(recipes.recipe(recipe), bench, say=say))


def policies(
    bench: Annotated[PoliciesBench, tyro.conf.arg(name="")],
    recipe: Annotated[str, tyro.conf.arg(help="Recipe to search around.")] = "toy_small",
) -> None:
    """Train whole grids, and compare what policies of what to train next find with a share of their epochs."""
    print(measure_policies(recipes.recipe(recipe), bench, say=say))


def multigrid(
    bench: Annotated[MultigridBench, tyro.conf.arg(name="")],
    recipe: Annotated[str, tyro.conf.arg(help="Recipe to train.")] = "toy",
) -> None:
    """Train with each multigrid cycle and without, with paired seeds; report the work saved and the accuracy lost."""
    session.connect(bench.address, workers_cpus=bench.workers, decode_cpus=1)
    print(measure_multigrid(recipe, bench, say=say))


SUBCOMMANDS: dict[str, Callable[..., Any]] = {
    "step": step,
    "decode": decode,
    "views": views,
    "ingest": ingest,
    "share": share,
    "train": train,
    "campaign": campaign,
    "multigrid": multigrid,
    "policies": policies,
}


def main() -> None:
    command_line.run_subcommand(SUBCOMMANDS, program="python jobs/bench.py", description="Measure speed.")


if __name__ == "__main__":
    run_job(main, leave=session.disconnect)
    sys.exit(0)
