"""What every rank does: restore, steps, evaluation, checkpoints. Runs on Ray Train workers."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from torch import distributed as dist

from tpn_ray import checkpoint as checkpoints
from tpn_ray import storage
from tpn_ray.data import rows
from tpn_ray.data.develop import clips_of_block
from tpn_ray.data.plan import Plan
from tpn_ray.data.worker import Rows
from tpn_ray.errors import CheckpointError, TrainingError
from tpn_ray.model.self_test import convolution_self_test
from tpn_ray.train.events import BadVideos, Event, Notice, Progress, Started, StepMetrics
from tpn_ray.train.recipe import Recipe, to_plain
from tpn_ray.train.step import MicroBatch, StepSums, Training

PREFETCH_BATCHES = 2


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the driver hands to every worker."""

    recipe: Recipe
    plan: Plan
    label_sets: dict[str, tuple[str, ...]]
    dataset_version: str
    run_uri: str
    mailbox: Any
    """Handle of the `Mailbox` actor."""
    threads: int
    last_step: int
    """Where this part of the run ends: before the plan does if it is to pause there."""
    start_from: str = ""
    """Checkpoint that a new run begins from: another run's, perhaps of other settings."""

    def tell(self, event: Event) -> None:
        """Send without waiting: a driver that is slow or gone must not stop a step."""
        self.mailbox.put.remote(event)


def train(config: dict[str, Any]) -> None:
    """The whole run on one rank, from the last checkpoint or the beginning to the end."""
    job: Job = config["job"]
    torch.set_num_threads(job.threads)
    recipe, plan, context = job.recipe, job.plan, ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    device = str(ray.train.torch.get_device())
    training = Training(recipe.model, recipe.loss, recipe.optim, recipe.loop, device)
    _restore(training, job)
    if recipe.loop.precision == "bf16":
        _distrust_bf16(training, job, rank)
    if rank == 0:
        job.tell(Started(step=training.step, workers=workers))
    stream = _Stream(job, training.step, rank, workers, device)
    log = _Log(job, training.step)
    evaluate_every = recipe.loop.evaluate_every_epochs * plan.steps_per_epoch
    while training.step < job.last_step:
        micro_batches = stream.step()
        log.add(training.train_step(micro_batches, plan.steps), stream.waited_seconds)
        if training.step % recipe.loop.log_every_steps == 0:
            log.flush(training, rank)
        if training.step % evaluate_every == 0 or training.step == job.last_step:
            log.flush(training, rank)
            scores = _evaluate(training, job, device)
            _commit(training, job, rank, scores, log.take_history())
            log.restart_clock()


def _restore(training: Training, job: Job) -> None:
    last = ray.train.get_checkpoint()
    uri = storage.join(job.run_uri, Path(last.path).name) if last else job.start_from
    if not uri:
        return
    saved = checkpoints.load(uri)
    try:
        training.model.load_state_dict(saved.weights)
        training.optimizer.load_state_dict(saved.training["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{uri} belongs to another network: {error}") from error
    training.step = saved.step


def _distrust_bf16(training: Training, job: Job, rank: int) -> None:
    """Go on in float32, on all ranks, where a bf16 convolution of the network gives wrong numbers on any of them."""
    side, loop = job.recipe.augment.crop_px, job.recipe.loop
    report = convolution_self_test(training.model, (loop.micro_batch_clips, 3, job.recipe.clip.frames, side, side))
    trusted = torch.tensor(float(report.trusted), device=training.device)
    if training.workers > 1:
        dist.all_reduce(trusted, dist.ReduceOp.MIN)
    if not trusted.item():
        training.loop = dataclasses.replace(loop, precision="fp32")
        if rank == 0:
            job.tell(Notice(text=f"training goes on in float32: {report}"))


class _Stream:
    """This rank's micro-batches, checked against the plan."""

    def __init__(self, job: Job, first_step: int, rank: int, workers: int, device: str) -> None:
        self.job, self.first_step, self.rank, self.workers, self.device = job, first_step, rank, workers, device
        self.slots = job.plan.slots_per_step(workers)
        self.next_slot = rank
        shard = ray.train.get_dataset_shard("train")
        size = job.plan.micro_batch_clips  # a block holds several micro-batches
        self.blocks: Iterator[Rows] = iter(shard.iter_batches(batch_size=size, prefetch_batches=PREFETCH_BATCHES))
        self.waited_seconds = 0.0

    def step(self) -> list[MicroBatch]:
        """The micro-batches of the next step that are this rank's; `waited_seconds` is how long they took to come."""
        begin = time.perf_counter()
        micro_batches = []
        for _ in range(self.slots // self.workers):
            number = self.next_slot % self.slots
            block = self._block()
            if number < self.job.plan.micro_batches_per_step:
                micro_batches.append(usable(block, number, self.device, self.job, "train"))
        self.waited_seconds = time.perf_counter() - begin
        return micro_batches

    def _block(self) -> Rows:
        expected = self.job.plan.slot(self.next_slot, self.workers, self.first_step)
        self.next_slot += self.workers
        try:
            block = next(self.blocks)
        except StopIteration:
            raise TrainingError(f"the data ended at step {expected.step}, before the plan did") from None
        if not np.array_equal(block[rows.POSITION], expected.positions):
            raise TrainingError(
                f"step {expected.step} got the clips {block[rows.POSITION].tolist()}, "
                f"the plan says {expected.positions.tolist()}: the order was broken on the way"
            )
        return block


def usable(block: Rows, number: int, device: str, job: Job, split: str) -> MicroBatch:
    """The clips of a block that are neither filling nor bad, on the device; bad ones are told to the driver."""
    bad = np.flatnonzero(block[rows.REASON] != "")
    if len(bad):
        found = ((int(block[rows.SAMPLE][i]), str(block[rows.REASON][i]), str(block[rows.MESSAGE][i])) for i in bad)
        job.tell(BadVideos(split=split, found=tuple(found)))
    good = (block[rows.REASON] == "") & (block[rows.SAMPLE] >= 0)
    labels = torch.as_tensor(block[rows.LABELS][good]).to(device)
    if rows.PIXELS in block:
        return MicroBatch(number, clips_of_block(block, good, job.recipe.augment.crop_px, device), labels)
    # The block is a read-only view of the object store; the copy to the device (or this one, on a CPU) makes it ours.
    clips = block[rows.CLIP] if good.all() and device != "cpu" else block[rows.CLIP][good]
    return MicroBatch(number, torch.as_tensor(clips).to(device), labels)


@dataclass
class _Log:
    """Sums since the last progress, and the history since the last checkpoint."""

    job: Job
    step: int
    sums: list[StepSums] = field(default_factory=list)
    waited: float = 0.0
    begin: float = field(default_factory=time.perf_counter)
    speed: float = 0.0
    history: list[StepMetrics] = field(default_factory=list)

    def add(self, sums: StepSums, waited_seconds: float) -> None:
        self.sums.append(sums)
        self.waited += waited_seconds

    def restart_clock(self) -> None:
        """Evaluation and checkpoints do not count as training time."""
        self.begin = time.perf_counter()

    def take_history(self) -> tuple[StepMetrics, ...]:
        taken, self.history = tuple(self.history), []
        return taken

    def flush(self, training: Training, rank: int) -> None:
        """Gather over all ranks (a collective), check the loss, tell the driver."""
        if not self.sums:
            return
        seconds, plan = time.perf_counter() - self.begin, self.job.plan
        loss = torch.stack([s.loss for s in self.sums]).sum().double()
        hits = torch.stack([s.hits for s in self.sums]).sum().double()
        clips = torch.tensor(float(sum(s.clips for s in self.sums)), dtype=torch.float64, device=training.device)
        share = torch.tensor(self.waited / seconds, dtype=torch.float64, device=training.device)
        gathered = torch.stack([loss, hits, clips, share])
        if training.workers > 1:
            dist.all_reduce(gathered)
        loss_sum, hit_sum, clip_sum, waiting = gathered.tolist()
        mean_loss = loss_sum / (len(self.sums) * plan.micro_batches_per_step)
        if not np.isfinite(mean_loss):
            raise TrainingError(
                f"the loss is {mean_loss} at step {training.step}; the last checkpoint is kept. "
                "Try a lower --optim.lr, a warm-up, or a smaller --optim.clip-norm"
            )
        self.speed = clip_sum / seconds
        values = {
            "loss": mean_loss,
            "top1": hit_sum / max(clip_sum, 1),
            "lr": training.optimizer.param_groups[0]["lr"],
            "clips_per_second": self.speed,
            "waiting_for_data": waiting / training.workers,
        }
        self.history.append(StepMetrics(step=training.step, values=values))
        if rank == 0:
            self.job.tell(self._progress(training.step, values))
        self.sums, self.waited = [], 0.0
        self.restart_clock()

    def _progress(self, step: int, values: dict[str, float]) -> Progress:
        plan = self.job.plan
        return Progress(
            step=step,
            steps=plan.steps,
            epoch=(step - 1) // plan.steps_per_epoch + 1,
            epochs=plan.epochs,
            loss=values["loss"],
            top1=values["top1"],
            clips_per_second=self.speed,
            waiting=values["waiting_for_data"],
            seconds_left=(plan.steps - step) * plan.batch_clips / max(self.speed, 1e-9),
        )


def _evaluate(training: Training, job: Job, device: str) -> dict[str, float]:
    """Every validation video once, whatever the number of workers; top-1 and top-5 on the middle clip."""
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    for block in ray.train.get_dataset_shard("val").iter_batches(batch_size=None, prefetch_batches=PREFETCH_BATCHES):
        batch = usable(block, 0, device, job, "val")
        if len(batch.labels):
            sums += training.evaluate(batch.clips, batch.labels)
    if training.workers > 1:
        dist.all_reduce(sums)
    loss, first, five, videos = sums.tolist()
    if videos == 0:
        raise TrainingError("no validation video could be used")
    return {"val_loss": loss / videos, "val_top1": first / videos, "val_top5": five / videos, "val_videos": videos}


def _commit(
    training: Training, job: Job, rank: int, scores: dict[str, float], history: tuple[StepMetrics, ...]
) -> None:
    """Checkpoint by rank 0; the report is a barrier for all."""
    epoch = training.step // job.plan.steps_per_epoch
    metrics = {"step": training.step, "epoch": epoch, **scores, "history": [(h.step, h.values) for h in history]}
    name = f"step-{training.step:08d}"
    if rank != 0:
        ray.train.report(metrics, checkpoint=None, checkpoint_dir_name=name)
        return
    with tempfile.TemporaryDirectory() as folder:
        saved = checkpoints.Checkpoint(
            step=training.step,
            weights=training.model.state_dict(),
            training={"optimizer": training.optimizer.state_dict()},
            recipe=to_plain(job.recipe),
            label_sets={name: list(classes) for name, classes in job.label_sets.items()},
            dataset_version=job.dataset_version,
            scores=scores,
        )
        checkpoints.save(Path(folder), saved)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder), checkpoint_dir_name=name)
