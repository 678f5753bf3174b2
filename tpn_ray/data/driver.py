"""The plan as a lazy `ray.data.Dataset`: one block is one ready micro-batch. Runs on drivers and Train's controller.

A range of slot numbers is cut into one-row blocks and each is decoded by one task. Cutting with `repartition` keeps
the start cheap whatever the length of the run: with one read task per slot, 100,000 slots took 139 s to the first
batch, this way 5 s. `preserve_order` and equal blocks make the split over ranks a fixed round-robin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.data

from tpn_ray.data import worker
from tpn_ray.data.plan import Plan, evaluation_slot, evaluation_slots
from tpn_ray.data.share import shared
from tpn_ray.data.views import Views
from tpn_ray.data.worker import ClipSource, Rows

SLOTS_PER_BLOCK = 256
VIEW_BLOCK_BYTES = 64 * 1024**2
VIEW_VIDEOS = 8
NO_PROGRESS_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class DecodeResources:
    """What one decoding task takes on a node, and how many may run at once (0: as many as fit)."""

    cpus: float = 1.0
    tasks: int = 0
    share_bytes: int = 0
    """Local disk of a node for decoded clips that other runs want too; 0 shares nothing."""
    share_with: str = ""
    """Who shares, such as a campaign: videos that change between two campaigns are decoded again."""


def execution_options() -> ray.data.ExecutionOptions:
    """What every dataset of the project runs with."""
    return ray.data.ExecutionOptions(preserve_order=True)


def configure_context() -> None:
    """Settings of Ray Data for the calling process; datasets made afterwards carry them."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = None  # one task, one block: a micro-batch is never cut
    context.execution_options.preserve_order = True
    context.execution_no_progress_timeout_s = NO_PROGRESS_SECONDS  # by default it waits 30 minutes for a CPU


def training_clips(
    source: ray.ObjectRef[ClipSource], plan: Plan, workers: int, first_step: int, resources: DecodeResources
) -> ray.data.Dataset:
    """The plan from `first_step` on; every row has the columns of `worker.training_rows`."""

    def decode(slot: Rows) -> Rows:
        micro_batch = plan.slot(int(slot["id"][0]), workers, first_step)
        clips, which = local_copy(source), f"{resources.share_with} training, epoch {micro_batch.epoch}"
        arrays = (micro_batch.positions, micro_batch.samples)
        return shared(resources.share_bytes, clips, which, arrays, lambda: worker.training_rows(clips, micro_batch))

    return _decoded(plan.slots(workers, first_step), decode, resources)


def evaluation_clips(
    source: ray.ObjectRef[ClipSource], samples: int, batch_clips: int, workers: int, resources: DecodeResources
) -> ray.data.Dataset:
    """Every video once, in stored order, filled up to equal shares; columns of `worker.evaluation_rows`."""

    def decode(slot: Rows) -> Rows:
        clips, numbers = local_copy(source), evaluation_slot(int(slot["id"][0]), samples, batch_clips)
        which = f"{resources.share_with} evaluation"
        return shared(resources.share_bytes, clips, which, [numbers], lambda: worker.evaluation_rows(clips, numbers))

    return _decoded(evaluation_slots(samples, batch_clips, workers), decode, resources)


def video_views(
    source: ray.ObjectRef[ClipSource], views: Views, samples: int, video_bytes: int, resources: DecodeResources
) -> ray.data.Dataset:
    """Every video once, in stored order; columns of `worker.view_rows`. `video_bytes`: of all views of one video."""
    videos = max(1, min(VIEW_VIDEOS, VIEW_BLOCK_BYTES // video_bytes))

    def decode(slot: Rows) -> Rows:
        numbers = evaluation_slot(int(slot["id"][0]), samples, videos)
        return worker.view_rows(local_copy(source), views, numbers[numbers >= 0])

    return _decoded(-(-samples // videos), decode, resources)


def _decoded(slots: int, decode: Callable[[Rows], Rows], resources: DecodeResources) -> ray.data.Dataset:
    configure_context()
    numbers = ray.data.range(slots, override_num_blocks=-(-slots // SLOTS_PER_BLOCK))
    compute = ray.data.TaskPoolStrategy(size=resources.tasks or None)
    return numbers.repartition(target_num_rows_per_block=1).map_batches(
        decode, batch_size=None, num_cpus=resources.cpus, compute=compute
    )


_copies: dict[ray.ObjectRef[Any], Any] = {}


def local_copy(reference: ray.ObjectRef[ClipSource]) -> ClipSource:
    """The object behind a reference, fetched once per process: a manifest can hold a quarter of a million rows."""
    if reference not in _copies:
        _copies.clear()
        _copies[reference] = ray.get(reference)
    copy: ClipSource = _copies[reference]
    return copy
