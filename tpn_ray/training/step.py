"""The body of the training loop in plain torch: one step, one evaluation. Runs on a laptop or a GPU without Ray.

Any number of workers may compute a step's micro-batches: BatchNorm and dropout see the same micro-batch with the same
random numbers wherever it is computed, and gradients and BatchNorm statistics are means over micro-batches.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tpn_ray.errors import ConfigError
from tpn_ray.metrics import top_k_hits
from tpn_ray.model.layers import SharedStatistics
from tpn_ray.model.precision import autocast, use_tf32
from tpn_ray.model.recognizer import ModelConfig, Recognizer, build_model, normaliser, split_label_sets
from tpn_ray.model.recompute import recompute_blocks
from tpn_ray.recipe import LoopConfig, LossConfig, OptimConfig
from tpn_ray.training.average import Average
from tpn_ray.training.loss import cross_entropy, head_losses, weighted
from tpn_ray.training.mixing import mix
from tpn_ray.training.optim import frozen_modules, laid_out_like, learning_rate, make_optimizer

SYNC_BUFFERS = "forward_sync_buffers"
if SYNC_BUFFERS not in inspect.signature(DistributedDataParallel).parameters:
    SYNC_BUFFERS = "broadcast_buffers"  # before torch 2.13


class MicroBatch(NamedTuple):
    """The usable clips of one slot of the plan, on the device."""

    number: int
    """Index in its step, from 0."""
    clips: UInt8[Tensor, "n t h w c"]
    labels: Int[Tensor, "n s"]
    """A class number for each label set; where videos have several classes, a column of 0 or 1 for each class."""


class StepSums(NamedTuple):
    """One worker's sums for one step, still on the device. To get means, add up over workers, then divide."""

    losses: Float[Tensor, " m"]
    """Mean loss of each micro-batch of the step; 0 for those of other workers."""
    hits: Int[Tensor, ""]
    clips: int
    heads: Float[Tensor, " h"] = torch.zeros(0)
    """Sum over this worker's micro-batches of each head's mean loss, without its weight; the main head comes first."""
    gradient_norm: Float[Tensor, ""] = torch.zeros(())
    """Norm of the step's gradient before clipping, the same on all workers."""


class Computed(NamedTuple):
    """What the network makes of a micro-batch."""

    losses: list[Float[Tensor, ""]]
    """Mean loss of each head, the main one first."""
    scores: Float[Tensor, "n k"]


class Training:
    """A network being trained: weights, optimizer, and BatchNorm statistics. `step` counts the completed steps."""

    def __init__(
        self,
        model: ModelConfig,
        loss: LossConfig,
        optim: OptimConfig,
        loop: LoopConfig,
        device: str,
        longest: timedelta | None = None,
    ) -> None:
        """Build the network; `longest` is the wait for other workers in groups made here, torch's own if None."""
        torch.manual_seed(loop.seed)
        # Read by cuBLAS at startup. Without it, cuBLAS may choose kernels that sum in no fixed order.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(loop.deterministic)
        # Every element is written before it is read, so filling new memory would only take time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = not loop.deterministic
        use_tf32(loop.precision == "tf32")
        self.loss_config, self.optim, self.loop, self.device = loss, optim, loop, device
        self.model: Recognizer = build_model(model).to(device)
        self.classes, self.multi_label = model.label_sets, model.multi_label
        self.optimizer = make_optimizer(optim, self.model, model.spec)
        self.frozen = frozen_modules(optim, self.model)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.statistics, self.counters = join_batch_norm_statistics(self.model)
        self.average = Average(self.model, optim.ema_decay) if optim.ema_decay else None
        self.normalise = normaliser(model).to(device)
        self.workers = dist.get_world_size() if dist.is_initialized() else 1
        self.shared = share_statistics(self.model, loop.sync_batch_norm, longest) if loop.sync_batch_norm > 1 else None
        if loop.recompute:  # after the average, which is a copy
            recompute_blocks(self.model.backbone)
        if loop.compile:
            self.model.compile(dynamic=False)
        # Buffers are not synchronized: `train_step` averages the statistics over all micro-batches instead.
        settings: dict[str, Any] = {SYNC_BUFFERS: False, "gradient_as_bucket_view": True}
        self.parallel: nn.Module = (
            DistributedDataParallel(self.model, **settings)
            if self.workers > 1 and not loop.ordered_reduction
            else self.model
        )
        self.step = 0

    @property
    def scored(self) -> nn.Module:
        """The network to evaluate and save: the averaged one if an average is kept."""
        return self.average.module if self.average else self.model

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the state dict of `scored`, and what else is needed to resume from here."""
        rest: dict[str, Any] = {"optimizer": self.optimizer.state_dict()}
        if self.average:
            self.average.take_buffers(self.model)
            rest |= {"model": self.model.state_dict(), "averaged": torch.tensor(self.average.steps)}
        return self.scored.state_dict(), rest

    def load(self, weights: dict[str, Any], rest: dict[str, Any], step: int) -> None:
        """Resume from the `state` after `step` steps. Raises what torch raises if it belongs to another network."""
        self.scored.load_state_dict(weights)
        if self.average:
            self.model.load_state_dict(rest["model"])
            self.average.steps = int(rest["averaged"])
        self.optimizer.load_state_dict(rest["optimizer"])
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[name] = laid_out_like(value, parameter)
        self.step = step

    def train_step(
        self, micro_batches: Sequence[MicroBatch], steps: int, count: int = 0, rate: float | None = None
    ) -> StepSums:
        """Update the weights once, from this worker's share (at least one) of the step's micro-batches.

        The step has `count` micro-batches over all workers, as many as in the recipe if 0, and the learning rate is
        `rate`, that of the recipe for a run of `steps` if None.
        """
        count = count or self.loop.micro_batches_per_step
        self.parallel.train()
        for module in self.frozen:
            module.eval()
        self.optimizer.zero_grad(set_to_none=True)
        reduce = OrderedReduction(self, count) if self.loop.ordered_reduction else FastReduction(self, count)
        losses = torch.zeros(count, device=self.device)
        hits = torch.zeros((), dtype=torch.long, device=self.device)
        heads = torch.zeros(1 + len(self.loss_config.lambdas), device=self.device)
        for micro_batch in micro_batches:
            self.statistics.copy_(reduce.before)  # every micro-batch of a step starts from the same statistics
            last = micro_batch is micro_batches[-1]
            with contextlib.nullcontext() if last else self.no_sync():
                each, scores = self._forward(micro_batch)
                loss = weighted(each, self.loss_config)
                seen = self.statistics.clone() if self.loop.recompute else None
                torch.autograd.backward(loss * reduce.share)
                if seen is not None:
                    self.statistics.copy_(seen)  # blocks that are computed again update them again
            reduce.add(micro_batch)
            losses[micro_batch.number] = loss.detach()
            heads += torch.stack([one.detach() for one in each])
            hits += first_hits(scores, micro_batch.labels, self.classes, self.multi_label)
        self.statistics.copy_(reduce.finish())
        self.counters.fill_(self.step + 1)
        norm = nn.utils.get_total_norm([weight.grad for weight in self.trained if weight.grad is not None])
        if self.optim.clip_norm:
            nn.utils.clip_grads_with_norm_(self.trained, self.optim.clip_norm, norm)
        if rate is None:
            rate = learning_rate(self.optim, self.step, steps, self.loop.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * rate
        self.optimizer.step()
        self.step += 1
        if self.average:
            self.average.follow(self.model)
        return StepSums(losses, hits, sum(len(m.labels) for m in micro_batches), heads, norm)

    def _forward(self, micro_batch: MicroBatch) -> Computed:
        # Dropout's random numbers depend on the place in the run, not on the worker or on what it computed before.
        seed = random_seed(self.loop.seed, self.step, micro_batch.number)
        torch.manual_seed(seed)
        if self.shared:
            self.shared.counts = len(micro_batch.labels) > 0
        if self.loop.compile and len(micro_batch.labels) != self.loop.micro_batch_clips:
            # One bad video would cost a minute of compilation.
            with torch.compiler.set_stance("force_eager"):
                return self._forward_these(micro_batch, seed)
        return self._forward_these(micro_batch, seed)

    def _forward_these(self, micro_batch: MicroBatch, seed: int) -> Computed:
        if len(micro_batch.labels) == 0:
            return self._forward_nothing(micro_batch)
        clips, partners = mix(self.normalise(micro_batch.clips), self.loss_config, seed)
        with autocast(self.loop.precision, self.device):
            scores = self.parallel(clips)
        labels = micro_batch.labels
        losses = head_losses(scores, labels, self.classes, self.loss_config, partners, self.multi_label)
        return Computed(losses, scores.action)

    def _forward_nothing(self, micro_batch: MicroBatch) -> Computed:
        """Handle a micro-batch of bad videos only: no loss and no gradient, but DDP still meets every parameter."""
        shape = (2, *micro_batch.clips.shape[1:])
        with autocast(self.loop.precision, self.device):
            scores = self.parallel(self.normalise(torch.zeros(shape, dtype=torch.uint8, device=self.device)))
        nothing = [part.sum() * 0.0 for part in (scores.action, *scores.auxiliary)]
        return Computed(nothing, scores.action[:0].float())

    def statistics_after(self, micro_batch: MicroBatch, before: Float[Tensor, " s"]) -> Float[Tensor, " s"]:
        """Return BatchNorm's statistics after a micro-batch, or those before it if it had no usable clips anywhere."""
        return self.statistics if self.shared or len(micro_batch.labels) else before

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Keep gradients local while accumulating."""
        if isinstance(self.parallel, DistributedDataParallel):
            return self.parallel.no_sync()
        return contextlib.nullcontext()

    @torch.no_grad()
    def evaluate(self, clips: UInt8[Tensor, "n t h w c"], labels: Int[Tensor, "n s"]) -> Float[Tensor, "4"]:
        """Return sums over the clips: loss, top-1 hits, top-5 hits, count. All label sets must be right for a hit."""
        scores = self.score(clips)
        loss = cross_entropy(scores, labels, self.classes) * len(labels)
        parts = split_label_sets(scores, self.classes)
        hits = [
            torch.stack([top_k_hits(part, labels[:, i], k) for i, part in enumerate(parts)]).all(dim=0).sum()
            for k in (1, 5)
        ]
        return torch.stack([loss, *(h.float() for h in hits), loss.new_full((), len(labels))])

    @torch.no_grad()
    def score(self, clips: UInt8[Tensor, "n t h w c"]) -> Float[Tensor, "n k"]:
        """Return the scores of the network as it is evaluated and saved, before softmax or sigmoid."""
        if self.average:
            self.average.take_buffers(self.model)
        self.scored.eval()
        with autocast(self.loop.precision, self.device):
            scores: Tensor = self.scored(self.normalise(clips)).action
        return scores.float()


class FastReduction:
    """Reduces gradients by DDP, and statistics by one sum over the workers, in an order that depends on their
    number."""

    def __init__(self, training: Training, count: int) -> None:
        self._training, self._count = training, count
        self.before = training.statistics.clone()
        self._summed = torch.zeros_like(self.before)
        # DDP takes the mean over workers; this turns it into the mean over all micro-batches.
        self.share = training.workers / count

    def add(self, micro_batch: MicroBatch) -> None:
        """Take over the results of a micro-batch's backward pass."""
        self._summed += self._training.statistics_after(micro_batch, self.before)

    def finish(self) -> Float[Tensor, " s"]:
        """Return the step's statistics: new = (1 - momentum) old + momentum * (mean over its micro-batches).

        Since the update is linear, this equals the published training, in which every GPU keeps its own statistics and
        they are averaged at the end of an epoch; and it does not depend on the number of workers.
        """
        if self._training.workers > 1:
            dist.all_reduce(self._summed)
        return self._summed / self._count


class OrderedReduction:
    """Gathers gradients and statistics of every micro-batch and adds them up in the order of their numbers."""

    def __init__(self, training: Training, count: int) -> None:
        self._training, self._count = training, count
        self.before = training.statistics.clone()
        self.share = 1.0
        self._own: list[Tensor] = []

    def add(self, micro_batch: MicroBatch) -> None:
        """Take over the results of a micro-batch's backward pass."""
        statistics = self._training.statistics_after(micro_batch, self.before)
        gradients = (laid_out_like(p.grad, p) for p in self._training.trained if p.grad is not None)
        in_memory = (gradient.as_strided((gradient.numel(),), (1,)) for gradient in gradients)
        self._own.append(torch.cat([*in_memory, statistics]))
        self._training.optimizer.zero_grad(set_to_none=True)

    def finish(self) -> Float[Tensor, " s"]:
        """Set the gradients to their mean over the step's micro-batches, and return the mean of the statistics."""
        training = self._training
        count, workers = self._count, training.workers
        own = torch.stack(self._own + [torch.zeros_like(self._own[0])] * (-(-count // workers) - len(self._own)))
        gathered = [own]
        if workers > 1:
            gathered = [torch.empty_like(own) for _ in range(workers)]
            dist.all_gather(gathered, own)
        total = torch.zeros_like(own[0])
        for number in range(count):
            turn, worker = divmod(number, workers)  # slot i of the plan goes to worker i modulo their number
            total += gathered[worker][turn]
        sizes = [*(parameter.numel() for parameter in training.trained), len(self.before)]
        *gradients, statistics = torch.split(total / count, sizes)
        for parameter, gradient in zip(training.trained, gradients, strict=True):
            parameter.grad = gradient.as_strided(parameter.shape, parameter.stride())
        return statistics


def first_hits(
    scores: Float[Tensor, "n k"], labels: Int[Tensor, "n s"], classes: tuple[int, ...], multi_label: bool = False
) -> Int[Tensor, ""]:
    """Count the clips whose best class is the right one in every label set; with `multi_label`, one of theirs."""
    if multi_label:
        return labels.gather(1, scores.detach().argmax(dim=1, keepdim=True)).sum()
    parts = split_label_sets(scores.detach(), classes)
    return torch.stack([part.argmax(dim=1) == labels[:, i] for i, part in enumerate(parts)]).all(dim=0).sum()


def random_seed(seed: int, step: int, number: int) -> int:
    """Return one 63-bit seed for each micro-batch of a run (splitmix64's finalizer over the three arguments)."""
    mask = (1 << 64) - 1
    value = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + number * 0x94D049BB133111EB + 1) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return (value ^ (value >> 31)) >> 1


def share_statistics(model: nn.Module, together: int, longest: timedelta | None = None) -> SharedStatistics:
    """Let BatchNorm see the micro-batches of `together` workers as one. All workers must call it.

    Worker i has slots i, i + workers, ... of a step, so adjacent workers have adjacent slots, and the grouping of slots
    does not depend on the number of workers. The groups have their own communicators, since DDP sends gradients at the
    same time.
    """
    workers = dist.get_world_size() if dist.is_initialized() else 1
    if workers % together:
        raise ConfigError(f"{workers} workers cannot form groups of sync_batch_norm={together}")
    members = [list(range(first, first + together)) for first in range(0, workers, together)]
    groups = [dist.new_group(each, timeout=longest) for each in members]
    shared = SharedStatistics(groups[dist.get_rank() // together])
    for norm in batch_norms(model):
        norm.shared = shared  # type: ignore[assignment]
    return shared


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Return all BatchNorm layers of a network."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def join_batch_norm_statistics(model: nn.Module) -> tuple[Float[Tensor, " s"], Int[Tensor, " b"]]:
    """Make all running means and variances, and all counters, views of two flat tensors, and return the tensors.

    The statistics of a step are then one copy and one all-reduce.
    """
    norms = batch_norms(model)
    if not norms:
        device = next(model.parameters()).device
        return torch.zeros(0, device=device), torch.zeros(0, dtype=torch.long, device=device)
    statistics = _join([(norm, name) for norm in norms for name in ("running_mean", "running_var")])
    return statistics, _join([(norm, "num_batches_tracked") for norm in norms])


def _join(buffers: list[tuple[nn.Module, str]]) -> Tensor:
    flat = torch.cat([module.get_buffer(name).flatten() for module, name in buffers])
    start = 0
    for module, name in buffers:
        shape = module.get_buffer(name).shape
        setattr(module, name, flat[start : start + shape.numel()].view(shape))
        start += shape.numel()
    return flat
