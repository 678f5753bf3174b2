"""A run without Ray, as a baseline for `bench`: the same steps on the same clips under torchrun, fed by a DataLoader.

`torchrun --nproc-per-node 2 -m benchmarks.plain_run SETTINGS.json`; rank 0 writes its measurements to the file
named in the settings.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed as dist
from torch.utils.data import DataLoader, Dataset

from tpn_ray.clips.rows import Rows
from tpn_ray.data.plan import Plan
from tpn_ray.data.schedule import Schedule
from tpn_ray.data.tasks import ClipSource, training_rows
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.recipe import from_plain
from tpn_ray.training.goodput import Clock
from tpn_ray.training.log import Log
from tpn_ray.training.run_plan import make_plan
from tpn_ray.training.step import Training
from tpn_ray.training.stream import Stream


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a plain run, written as JSON."""

    recipe: dict[str, object]
    """The recipe as plain data, with the dataset's number of classes."""
    data: str
    threads: int
    """Torch threads of each worker."""
    loaders: int
    """Decoding processes of each worker."""
    gpu: bool
    out: str


class Blocks(Dataset[Rows]):
    """The blocks of one worker, in order."""

    def __init__(self, source: ClipSource, plan: Plan, rank: int, workers: int) -> None:
        self.source, self.plan, self.rank, self.workers = source, plan, rank, workers

    def __len__(self) -> int:
        return self.plan.blocks(self.workers) // self.workers

    def __getitem__(self, turn: int) -> Rows:
        torch.set_num_threads(1)
        return training_rows(self.source, self.plan.block(turn * self.workers + self.rank, self.workers))


def main(path: str) -> None:
    """Train all epochs and write the measurements."""
    settings = Settings(**json.loads(Path(path).read_text()))
    torch.set_num_threads(settings.threads)
    dist.init_process_group("nccl" if settings.gpu else "gloo")
    rank, workers = dist.get_rank(), dist.get_world_size()
    device = f"cuda:{rank}" if settings.gpu else "cpu"
    recipe, manifest = from_plain(settings.recipe), load_manifest(settings.data)
    videos, loop = manifest.select("train"), recipe.loop
    plan = make_plan(recipe, manifest)
    source = ClipSource(
        manifest=videos, clip=recipe.clip, augment=recipe.augment, seed=loop.seed, developed=not settings.gpu
    )
    training = Training(recipe.model, recipe.loss, recipe.optim, loop, device)
    loader = DataLoader(
        Blocks(source, plan, rank, workers),
        batch_size=None,
        collate_fn=_as_it_is,  # type: ignore[arg-type]  # without batching, it gets one block
        num_workers=settings.loaders,
    )
    stream = Stream(
        iter(loader),
        Schedule(plan=plan, validation=1, evaluate_every=plan.epochs),
        first_step=0,
        rank=rank,
        workers=workers,
        crop_px=recipe.augment.crop_px,
        device=device,
        tell=lambda event: None,
    )
    clock = Clock.of(device)
    log = Log(plan, clock, lambda event: None)
    while training.step < plan.steps:
        with clock.booking("data"):
            micro_batches = stream.step()
        with clock.booking("compute"):
            log.add(training.train_step(micro_batches, plan.steps))
            if training.step % loop.log_every_steps == 0 or training.step == plan.steps:
                log.flush(training, rank)
    if rank == 0:
        measured = [{"step": metrics.step, **metrics.values} for metrics in log.take_history()]
        Path(settings.out).write_text(json.dumps(measured))
    dist.destroy_process_group()


def _as_it_is(block: Rows) -> Rows:
    return block


if __name__ == "__main__":
    main(sys.argv[1])
