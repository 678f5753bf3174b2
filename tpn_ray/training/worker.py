"""The work of every rank: restore, steps, evaluation, checkpoints. Runs on Ray Train workers.

Rank 0 chooses the checkpoint from which the group resumes, and makes the one stream of clips that all ranks read. It
alone commits checkpoints, at any time: between two steps all ranks have the same weights, so it needs no other rank.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import ray.data
import ray.exceptions
import ray.train
import ray.train.torch
import torch
from torch import distributed as dist

from tpn_ray import checkpoint as checkpoints
from tpn_ray import storage
from tpn_ray.clips.rows import Rows
from tpn_ray.data import dataset as data
from tpn_ray.data.schedule import Schedule
from tpn_ray.data.share import Sharing
from tpn_ray.data.tasks import ClipSource
from tpn_ray.errors import (
    CheckpointError,
    ConfigError,
    DamagedError,
    LeaseError,
    SupersededError,
    TpnRayError,
)
from tpn_ray.lease import Token
from tpn_ray.model.convolution_check import convolution_self_test
from tpn_ray.model.weights import load_what_fits
from tpn_ray.recipe import Recipe, to_plain
from tpn_ray.resources import Decoding
from tpn_ray.score import called, score_of
from tpn_ray.training import multigrid, run_folder
from tpn_ray.training.evaluation import evaluate
from tpn_ray.training.events import Event, Notice, Started, Stopped
from tpn_ray.training.goodput import Clock
from tpn_ray.training.log import DivergedError, Log
from tpn_ray.training.order_ledger import OrderLedger
from tpn_ray.training.record import Record
from tpn_ray.training.saving import Saving
from tpn_ray.training.step import Training
from tpn_ray.training.stream import Stream
from tpn_ray.training.writer import Writer, copied

PREFETCH_BATCHES = 2
TELL_SECONDS = 30.0
"""Longest wait for the driver to receive the error that ends the run. Without it, the workers would be restarted."""
NOTICE_SECONDS = 1.0
"""Interval at which to check whether the cluster is about to take a node away."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the driver hands to every worker."""

    recipe: Recipe
    schedule: Schedule
    """Schedule of this part of the run. It ends before the recipe's last epoch if the run is to pause there."""
    steps: int
    """Steps of the whole run, which the learning rate follows."""
    training: ray.ObjectRef[ClipSource]
    validation: ray.ObjectRef[ClipSource]
    decoding: Decoding
    sharing: Sharing
    label_sets: dict[str, tuple[str, ...]]
    dataset_version: str
    run_uri: str
    token: Token
    """Token of the lease under which the run is written."""
    saving: Saving
    mailbox: Any
    """Handle of a `mailbox.Mailbox`."""
    threads: int
    collective_seconds: int
    """Longest wait of a worker for the others."""
    start_from: str = ""
    """Checkpoint from which a new run starts: another run's, possibly with other settings."""
    start_step: int = 0
    """Step at which such a run starts; 0: the checkpoint's own."""
    order_ledger: str = ""
    """Folder for an `OrderLedger`; empty for none."""

    def tell(self, event: Event) -> None:
        """Send an event without waiting: a slow or lost driver must not stop a step."""
        self.mailbox.put.remote(event)

    def teller_of_outages(self) -> Callable[[str], None]:
        """Return a function that reports storage outages to the driver from any process of the run."""
        mailbox = self.mailbox
        return lambda text: mailbox.put.remote(Notice(text=text, about="storage"))

    @contextlib.contextmanager
    def stopped_by(self, *errors: type[TpnRayError]) -> Iterator[None]:
        """Have the driver end the run, rather than restart the workers, if one of these errors is raised inside."""
        try:
            yield
        except SupersededError:  # concerns this group alone: a newer one is training
            raise
        except errors as error:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self.mailbox.put.remote(Stopped(error=error)), timeout=TELL_SECONDS)
            raise


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """Where a group of workers resumes, as decided by rank 0."""

    step: int
    checkpoint: str
    """URI; empty for a new run."""
    start: int
    """A number above that of every earlier start: milliseconds since the epoch."""
    scores: tuple[float, ...]
    """Scores of all evaluations so far, by which checkpoints are ranked."""
    token: Token
    """Token with which this group writes."""


def train(config: dict[str, Any]) -> None:
    """Run one rank from the last checkpoint, or the start, to the end of the run."""
    job: Job = config["job"]
    storage.tell_outages(job.teller_of_outages())
    at = time.time()
    torch.set_num_threads(job.threads)
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    device = str(ray.train.torch.get_device())
    clock = Clock.of(device)
    recipe = job.recipe
    longest = timedelta(seconds=job.collective_seconds)
    training = Training(recipe.model, recipe.loss, recipe.optim, recipe.loop, device, longest)
    beginning = _begin(training, job, rank)
    if rank == 0:
        group = ray.util.get_current_placement_group()
        job.tell(Started(step=training.step, workers=workers, at=at, placement_group=group.id.hex() if group else ""))
    if recipe.loop.precision == "bf16":
        distrust_bf16(training, job.tell, recipe, rank)
    stream = Stream(
        _blocks(job, training, rank, workers),
        job.schedule,
        first_step=training.step,
        rank=rank,
        workers=workers,
        crop_px=recipe.augment.crop_px,
        colors=recipe.clip.colors,
        augment=recipe.augment,
        seed=recipe.loop.seed,
        device=device,
        tell=job.tell,
    )
    writer = Writer(job.run_uri, job.saving, job.tell, beginning.token, beginning.step)
    with contextlib.suppress(DivergedError):  # the driver was told and fails the run; a restart would only repeat it
        _Rank(job, training, stream, writer, clock, rank, beginning).run()


class _Rank:
    """The training loop of one rank."""

    def __init__(
        self,
        job: Job,
        training: Training,
        stream: Stream,
        writer: Writer,
        clock: Clock,
        rank: int,
        beginning: Beginning,
    ) -> None:
        self.job, self.training, self.stream, self.writer = job, training, stream, writer
        self.clock, self.rank, self.scores = clock, rank, list(beginning.scores)
        first = ray.train.get_context().get_local_rank() == 0
        self.log = Log(job.schedule.plan, clock, job.tell, ray.util.get_node_ip_address() if first else "")
        self.ledger = OrderLedger(job.order_ledger, beginning.start, rank, beginning.step) if job.order_ledger else None
        self.preemption = _Preemption()
        self.saved_at = time.monotonic()
        self.ended = ""

    def run(self) -> None:
        """Train to the end of the schedule, or until the run ends early."""
        training, plan, saving = self.training, self.job.schedule.plan, self.job.saving
        while training.step < plan.steps and not self.ended:
            self._step()
            evaluated = self.job.schedule.is_evaluated(training.step)
            counted = bool(saving.every_steps and training.step % saving.every_steps == 0)
            flushed = evaluated or counted or training.step % training.loop.log_every_steps == 0
            if flushed:
                with self.clock.booking("compute"):
                    self.log.flush(training, self.rank)
            scores = self._evaluate() if evaluated else {}
            if self.rank == 0:
                notice = self.preemption.news()
                due = flushed and saving.is_due(training.step, time.monotonic() - self.saved_at)
                if evaluated or due or notice:
                    self._commit(scores)
                if notice:
                    self.job.tell(Notice(text=f"{notice}; a checkpoint of step {training.step} is being written"))
                with self.job.stopped_by(TpnRayError):
                    self.writer.check()
        if self.rank == 0:
            with self.clock.booking("checkpoint"), self.job.stopped_by(TpnRayError):
                self.writer.close()

    def _step(self) -> None:
        with self.clock.booking("data"):
            micro_batches = self.stream.step()
        if self.ledger:
            for number, positions in self.stream.trained:
                self.ledger.trained(self.training.step, number, positions.tolist())
        step, plan, recipe = self.training.step, self.job.schedule.plan, self.job.recipe
        rate = multigrid.learning_rate(recipe.optim, plan, step, recipe.loop.epochs) if plan.grid else None
        with self.clock.booking("compute"):
            sums = self.training.train_step(micro_batches, self.job.steps, plan.micro_batches(step), rate)
        self.log.add(sums)

    def _evaluate(self) -> dict[str, float]:
        """Score the middle clip of every validation video once, for any number of workers."""
        with self.clock.booking("evaluation"):
            scores = evaluate(self.training, self.stream.evaluation())
        self.scores.append(score_of(scores))
        self.ended = why_end(self.scores, self.job.recipe.loop.patience_evaluations, called(scores))
        return scores

    def _commit(self, scores: dict[str, float]) -> None:
        job, training = self.job, self.training
        with self.clock.booking("checkpoint"):
            weights, rest = copied(training.state())
            checkpoint = checkpoints.Checkpoint(
                step=training.step,
                weights=weights,
                training=rest,
                recipe=to_plain(job.recipe),
                label_sets={name: list(classes) for name, classes in job.label_sets.items()},
                dataset_version=job.dataset_version,
                scores=scores,
            )
            record = Record(
                step=training.step,
                epoch=job.schedule.plan.place(training.step)[0],
                scores=scores,
                history=self.log.take_history(),
                ended=self.ended,
            )
            with self.job.stopped_by(TpnRayError):
                self.writer.commit(checkpoint, record)
            self.saved_at = time.monotonic()


def why_end(scores: Sequence[float], patience: int, name: str = "top-1") -> str:
    """Return why a run with these evaluations ends early; empty if it continues."""
    stale = len(scores) - 1 - list(scores).index(max(scores))
    if not patience or stale < patience:
        return ""
    return f"the last {stale} evaluations did not reach more than {max(scores):.1%} {name}"


def _begin(training: Training, job: Job, rank: int) -> Beginning:
    """Let rank 0 choose the newest whole checkpoint, and load it on all ranks, or else the recipe's initial weights."""
    told: list[Beginning | None] = [_choose(job) if rank == 0 else None]
    if training.workers > 1:
        dist.broadcast_object_list(told, src=0, device=torch.device(training.device))
    (beginning,) = told
    assert beginning is not None
    if beginning.checkpoint:
        saved = checkpoints.load(beginning.checkpoint)
        try:
            training.load(saved.weights, saved.training, beginning.step)
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{beginning.checkpoint} belongs to another network: {error}") from error
    elif job.recipe.loop.weights:
        _begin_with_weights(training, job, rank)
    return beginning


def _choose(job: Job) -> Beginning:
    if not storage.exists(storage.join(job.run_uri, run_folder.ABOUT)):
        raise ConfigError(
            f"{job.run_uri} does not exist on node {ray.util.get_node_ip_address()}: with workers on several nodes, "
            "--storage must be a folder that all of them share, or s3://..."
        )
    with job.stopped_by(LeaseError, DamagedError):
        token = job.token.begin(job.run_uri)
        step, faults = run_folder.newest_whole(job.run_uri)
        scored = [record for record in run_folder.read_records(job.run_uri) if record.scores]
    for fault in faults:
        job.tell(Notice(text=f"{fault}; it is set aside, and the one before it is used"))
    uri = run_folder.checkpoint_uri(job.run_uri, step) if step else job.start_from
    return Beginning(
        step=step or job.start_step or (checkpoints.load(uri).step if uri else 0),
        checkpoint=uri,
        start=time.time_ns() // 1_000_000,
        scores=tuple(score_of(record.scores) for record in scored),
        token=token,
    )


def _begin_with_weights(training: Training, job: Job, rank: int) -> None:
    uri = job.recipe.loop.weights
    report = load_what_fits(training.model, uri)
    if rank == 0:
        job.tell(Notice(text=f"starting from the weights of {uri}: {report}"))


def _blocks(job: Job, training: Training, rank: int, workers: int) -> Iterator[Rows]:
    """Return this rank's share of the one stream that rank 0 makes; it ends with rank 0."""
    shares: list[Any] = [None]
    if rank == 0:
        clips = data.run_clips(
            job.training,
            job.validation,
            job.schedule,
            workers,
            training.step,
            job.decoding,
            job.sharing,
            job.teller_of_outages(),
        )
        shares[0] = clips.streaming_split(workers, equal=True)
    if workers > 1:
        dist.broadcast_object_list(shares, src=0, device=torch.device(training.device))
    share: ray.data.DataIterator = shares[0][rank]
    return iter(share.iter_batches(batch_size=None, prefetch_batches=PREFETCH_BATCHES))


class _Preemption:
    """Checks, alongside the steps, whether the cluster is about to take away a node of this group."""

    def __init__(self) -> None:
        self._seen: object = None
        self._news = ""
        threading.Thread(target=self._watch, name="preemption", daemon=True).start()

    def news(self) -> str:
        """Return what is new since the last call, in a few words; empty if nothing is."""
        news, self._news = self._news, ""
        return news

    def _watch(self) -> None:
        while True:
            info = ray.train.get_preemption_info()  # all ranks take part
            if info is not None and info != self._seen:
                self._seen = info
                self._news = f"the cluster is taking {len(info.preempted_node_to_ranks)} node(s) of this run away"
            time.sleep(NOTICE_SECONDS)


def distrust_bf16(training: Training, tell: Callable[[Event], None], recipe: Recipe, rank: int) -> None:
    """Switch to float32 on all ranks if a bf16 convolution of the network gives wrong numbers on any of them."""
    side, loop, clip = recipe.augment.crop_px, recipe.loop, recipe.clip
    shape = loop.micro_batch_clips, clip.channels, clip.frames, side, side
    report = convolution_self_test(training.model, shape)
    trusted = torch.tensor(float(report.trusted), device=training.device)
    if training.workers > 1:
        dist.all_reduce(trusted, dist.ReduceOp.MIN)
    if not trusted.item():
        training.loop = dataclasses.replace(loop, precision="fp32")
        if rank == 0:
            tell(Notice(text=f"training continues in float32: {report}"))
