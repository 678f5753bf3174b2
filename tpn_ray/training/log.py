"""Metrics of the steps, gathered from all workers. Runs on Ray Train workers, and anywhere."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable

import psutil
import torch
from torch import distributed as dist

from tpn_ray.data.plan import Plan
from tpn_ray.errors import TrainingError
from tpn_ray.training.events import Diverged, Event, NodeLoad, Progress
from tpn_ray.training.goodput import METRIC, PARTS, PEAK, Clock
from tpn_ray.training.record import StepMetrics
from tpn_ray.training.step import StepSums, Training

MEGABYTE = 1024**2
REPORT_SECONDS = 10.0
"""Interval at which each node reports how busy it is."""


class DivergedError(TrainingError):
    """The loss is not a finite number. Every rank sees this at the same step, and again after every restart."""


class Log:
    """Sums since the last progress report, and the history since the last checkpoint."""

    def __init__(self, plan: Plan, clock: Clock, tell: Callable[[Event], None], node: str = "") -> None:
        """`node` is the address of this node if this worker reports how busy it is."""
        self._plan, self._clock, self._tell, self._node = plan, clock, tell, node
        self._reported = -math.inf
        self._sums: list[StepSums] = []
        self._history: list[StepMetrics] = []
        self._process = psutil.Process()
        psutil.cpu_percent()  # the first call only starts the measurement

    def add(self, sums: StepSums) -> None:
        """Add one step; the clock knows how long it took."""
        self._sums.append(sums)

    def take_history(self) -> tuple[StepMetrics, ...]:
        """Return the metrics gathered since the last call."""
        taken, self._history = tuple(self._history), []
        return taken

    def flush(self, training: Training, rank: int) -> None:
        """Gather over all workers (a collective), stop if a loss is not finite, and tell the driver."""
        if not self._sums:
            return
        # One worker knows each loss, and it is 0 on the others, so the sum is exact whichever worker computed which.
        losses = torch.cat([sums.losses for sums in self._sums]).double()
        hits = torch.stack([sums.hits for sums in self._sums]).sum().double()
        booked = self._clock.take()
        numbers = [
            float(sum(sums.clips for sums in self._sums)),
            *(booked[part] for part in PARTS),
        ]
        # Every worker knows the norm.
        norm = torch.stack([sums.gradient_norm for sums in self._sums]).double().mean() / training.workers
        heads = torch.stack([sums.heads for sums in self._sums]).double().sum(dim=0) / losses.numel()
        parts = [losses, heads, torch.stack([norm, hits]), torch.tensor(numbers, dtype=torch.float64).to(losses)]
        gathered = torch.cat(parts)
        peak = torch.tensor([self._peak(training.device)], dtype=torch.float64).to(losses)
        if training.workers > 1:
            dist.all_reduce(gathered)
            dist.all_reduce(peak, dist.ReduceOp.MAX)
        all_losses, all_heads, all_sums, all_numbers = torch.split(gathered, [len(part) for part in parts])
        self._stop_if_diverged(all_losses, training.step, rank)
        loss, (gradient_norm, hit_sum) = all_losses.mean().item(), all_sums.tolist()
        clips, *rest = all_numbers.tolist()
        summed = dict(zip(PARTS, rest, strict=True))
        seconds = summed["compute"] + summed["data"]
        speed = clips * training.workers / max(seconds, 1e-9)
        group = training.optimizer.param_groups[0]
        values = {
            "loss": loss,
            **_by_head(all_heads.tolist()),
            "gradient_norm": gradient_norm,
            "top1": hit_sum / max(clips, 1),
            "lr": group["lr"] / group["scale"],
            "clips_per_second": speed,
            "waiting_for_data": summed["data"] / max(seconds, 1e-9),
            PEAK: peak.item(),
        }
        values |= {METRIC + part: value for part, value in summed.items()}
        self._history.append(StepMetrics(step=training.step, values=values))
        if rank == 0:
            self._tell(self._progress(training.step, values))
        self._report(training)
        self._sums = []

    def _report(self, training: Training) -> None:
        """Say how busy this node is, now and then."""
        now = time.monotonic()
        if self._node and now - self._reported >= REPORT_SECONDS:
            self._reported = now
            self._tell(NodeLoad(node=self._node, step=training.step, values=self._load(training.device)))

    def _stop_if_diverged(self, losses: torch.Tensor, step: int, rank: int) -> None:
        wrong = (~torch.isfinite(losses)).nonzero()
        if not len(wrong):
            return
        number, at = int(wrong[0]), step - len(self._sums)
        loss = float(losses[number])
        for sums in self._sums:
            if number < len(sums.losses):
                break
            number, at = number - len(sums.losses), at + 1
        if rank == 0:
            self._tell(Diverged(step=at, number=number, loss=loss))
        raise DivergedError(f"the loss of micro-batch {number} of step {at} is {loss}")

    def _load(self, device: str) -> dict[str, float]:
        """Return the load of this node, and the memory of this worker, named like MLflow's system metrics."""
        memory = psutil.virtual_memory()
        numbers = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
            "worker_memory_usage_megabytes": self._process.memory_info().rss / MEGABYTE,
        }
        if device != "cpu":
            free, total = torch.cuda.mem_get_info(device)
            numbers["gpu_0_memory_usage_megabytes"] = (total - free) / MEGABYTE
            numbers["gpu_0_memory_usage_percentage"] = 100 * (total - free) / total
        return numbers

    def _peak(self, device: str) -> float:
        """Return the largest memory so far, in megabytes: of tensors on the GPU, or of this process without one."""
        if device != "cpu":
            return torch.cuda.max_memory_allocated(device) / MEGABYTE
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def _progress(self, step: int, values: dict[str, float]) -> Progress:
        plan = self._plan
        return Progress(
            step=step,
            steps=plan.steps,
            epoch=plan.place(step - 1)[0] + 1,
            epochs=plan.epochs,
            loss=values["loss"],
            top1=values["top1"],
            clips_per_second=values["clips_per_second"],
            waiting=values["waiting_for_data"],
            seconds_left=(plan.clips(plan.steps) - plan.clips(step)) / max(values["clips_per_second"], 1e-9),
        )


def _by_head(losses: list[float]) -> dict[str, float]:
    """Name the losses of the heads, the main one first; alone, it is the loss."""
    names = ("loss_main", *(f"loss_auxiliary_{i}" for i in range(len(losses) - 1)))
    return dict(zip(names, losses, strict=True)) if len(losses) > 1 else {}
