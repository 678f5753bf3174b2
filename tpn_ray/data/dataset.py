"""The plan as a lazy `ray.data.Dataset`, whose blocks hold whole micro-batches. Runs on drivers and Train's controller.

A range of block numbers is split into one-row blocks, each of which one task decodes. Splitting with `repartition`
keeps startup cheap whatever the length of the run: for 100,000 blocks, the first batch came after 139 s with one read
task per number, and after 5 s this way. `preserve_order` and equal blocks make the split over ranks a fixed
round-robin.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import ray
import ray.data
import ray.exceptions
from ray.data._internal.execution.execution_callback import ExecutionCallback

from tpn_ray import storage
from tpn_ray.clips.rows import Rows
from tpn_ray.clips.views import Views
from tpn_ray.data import tasks
from tpn_ray.data.plan import Plan, PlannedMicroBatch, evaluation_slot
from tpn_ray.data.schedule import EvaluationBatch, Schedule
from tpn_ray.data.share import Sharing, shared
from tpn_ray.data.tasks import ClipSource
from tpn_ray.errors import ResourceError
from tpn_ray.resources import PATIENCE_SECONDS, Decoding, Labels

NUMBERS_PER_READ = 256
VIEW_BLOCK_BYTES = 64 * 1024**2
VIEW_VIDEOS = 8
FETCH_SECONDS = 300.0
"""Longest wait for an object that the driver put into the object store: some hundred megabytes at most."""
KEPT_OF_BLOCKS = "_output_blocks_stats"
"""Attribute of Ray Data's operators with a record of every block that they have made."""
KEPT_COPIES = 2  # a run's training and validation videos
SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.001, 0.05
"""Pauses between rounds of Ray Data's scheduling that had nothing to wait for."""
WAITED_SECONDS = 0.01
"""Time above which a round counts as having waited for a task."""


def node_labels() -> list[Labels]:
    """Return the labels of the nodes that are alive now."""
    return [node["Labels"] or {} for node in ray.nodes() if node["Alive"]]


class Pace(ExecutionCallback):  # type: ignore[misc]  # Ray's classes are untyped here
    """Keeps Ray Data's scheduling from spinning, in whichever process it runs.

    While decoded clips wait for a slower consumer, its loop has nothing to wait for and runs without a pause, which
    wasted half a core where training was the bottleneck. So rounds that wait for nothing are followed by growing
    pauses. A fixed pause is worse: decoding one block takes several rounds, and where decoding is the bottleneck, 50 ms
    after each round cost a quarter of the speed.
    """

    def __init__(self) -> None:
        self._pause, self._since = 0.0, time.monotonic()

    def on_execution_step(self, executor: object) -> None:
        """Pause if the round waited for nothing; called after each round."""
        if time.monotonic() - self._since > WAITED_SECONDS:
            self._pause = 0.0
        else:
            self._pause = min(LONGEST_PAUSE_SECONDS, 2 * self._pause or SHORTEST_PAUSE_SECONDS)
            time.sleep(self._pause)
        self._since = time.monotonic()


class Forget(ExecutionCallback):  # type: ignore[misc]
    """Drops what Ray Data records of single blocks for `Dataset.stats()`, which nobody reads here.

    It keeps these records to the end of an execution, and an execution lasts as long as a run: 11 KB a block, 34 GB for
    100 epochs over a million videos.
    """

    def on_execution_step(self, executor: Any) -> None:
        """Empty the lists of all operators; called after each round."""
        for operator in executor._topology:
            # Ray 2.60 has no public way; test_what_is_kept_of_blocks_is_dropped notices if a later one renames it.
            getattr(operator, KEPT_OF_BLOCKS, []).clear()


def configure_context(cpus: float | None = None, patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Configure Ray Data for the calling process; datasets made afterwards keep these settings.

    A dataset without a limit of `cpus` may request all free CPUs and leave none to others. `patience_seconds` is
    extended by the time that its tasks may wait for storage.
    """
    context = ray.data.DataContext.get_current()
    context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(cpu=cpus)
    context.enable_progress_bars = False
    context.target_max_block_size = None  # one task, one block: a micro-batch is never split
    context.execution_options.preserve_order = True
    context.custom_execution_callback_classes = [Pace, Forget]
    # By default, Ray Data waits 30 minutes for a CPU.
    context.execution_no_progress_timeout_s = int(patience_seconds + storage.patience_seconds())


def training_clips(
    source: ray.ObjectRef[ClipSource], plan: Plan, workers: int, first_step: int, decoding: Decoding
) -> ray.data.Dataset:
    """Return the plan from `first_step` on; every row has the columns of `tasks.training_rows`.

    A block holds the next few micro-batches of one worker: read them with `iter_batches(batch_size=micro_batch_clips)`.
    """

    def decode(block: Rows) -> Rows:
        micro_batches = plan.block(int(block["id"][0]), workers, first_step)
        return tasks.training_rows(local_copy(source), micro_batches)

    return _decoded(plan.blocks(workers, first_step), decode, decoding)


def run_clips(
    training: ray.ObjectRef[ClipSource],
    validation: ray.ObjectRef[ClipSource],
    schedule: Schedule,
    workers: int,
    first_step: int,
    decoding: Decoding,
    sharing: Sharing,
    tell: Callable[[str], None],
) -> ray.data.Dataset:
    """Return everything that a run reads after `first_step`, in the blocks of `schedule.block`.

    Rows are those of `tasks.training_rows` or, in between, of `tasks.evaluation_rows`. Storage outages are reported
    through `tell`, from where the data is read.
    """

    def decode(number: Rows) -> Rows:
        storage.tell_outages(tell)
        block = schedule.block(int(number["id"][0]), workers, first_step)
        scored = [slot.samples for slot in block if isinstance(slot, EvaluationBatch)]
        trained = [slot for slot in block if isinstance(slot, PlannedMicroBatch)]
        clips: ClipSource = local_copy(validation if scored else training)
        if trained:  # what is shared is known by the shape of its clips
            clips = clips.shaped(trained[0].shape)
        epochs = [micro_batch.epoch for micro_batch in trained]

        def make() -> Rows:
            if scored:
                return tasks.evaluation_rows(clips, np.concatenate(scored), together=len(scored[0]))
            return tasks.training_rows(clips, trained)

        which = f"{sharing.among} {'evaluation' if scored else f'training in epochs {epochs}'}"
        arrays = scored or [array for part in trained for array in (part.positions, part.samples)]
        return shared(sharing.limit_bytes, clips, which, arrays, make)

    return _decoded(schedule.blocks(workers, first_step), decode, decoding)


def video_views(
    source: ray.ObjectRef[ClipSource], views: Views, samples: int, video_bytes: int, decoding: Decoding
) -> ray.data.Dataset:
    """Return every video once, in stored order, with the columns of `tasks.view_rows`.

    `video_bytes` is the size of what the views of one video show.
    """
    videos = max(1, min(VIEW_VIDEOS, VIEW_BLOCK_BYTES // video_bytes))

    def decode(slot: Rows) -> Rows:
        numbers = evaluation_slot(int(slot["id"][0]), samples, videos)
        return tasks.view_rows(local_copy(source), views, numbers[numbers >= 0])

    return _decoded(-(-samples // videos), decode, decoding)


def video_windows(
    source: ray.ObjectRef[ClipSource],
    views: Views,
    length_seconds: float,
    hop_seconds: float,
    samples: int,
    decoding: Decoding,
) -> ray.data.Dataset:
    """Return every window of every video, in order, with the columns of `tasks.window_rows`.

    A task passes windows on as it decodes them.
    """

    def decode(slot: Rows) -> Iterator[Rows]:
        return tasks.window_rows(local_copy(source), views, length_seconds, hop_seconds, int(slot["id"][0]))

    decoded = _decoded(samples, decode, decoding)
    decoded.context.target_max_block_size = VIEW_BLOCK_BYTES
    return decoded


def _decoded(count: int, decode: Callable[[Rows], Rows | Iterator[Rows]], decoding: Decoding) -> ray.data.Dataset:
    configure_context(decoding.tasks * decoding.cpus if decoding.tasks else None, decoding.patience_seconds)
    numbers = ray.data.range(count, override_num_blocks=-(-count // NUMBERS_PER_READ))
    compute = ray.data.TaskPoolStrategy(size=decoding.tasks or None)
    return numbers.repartition(target_num_rows_per_block=1).map_batches(
        decode,
        batch_size=None,
        num_cpus=decoding.cpus,
        compute=compute,
        label_selector=decoding.labels or None,
    )


_copies: dict[ray.ObjectRef[Any], Any] = {}


def local_copy(reference: ray.ObjectRef[Any]) -> Any:
    """Return the object behind a reference, fetched once per process: a manifest can hold a quarter of a million rows.

    Raises ResourceError if the node that holds it does not deliver it.
    """
    if reference not in _copies:
        while len(_copies) >= KEPT_COPIES:
            del _copies[next(iter(_copies))]
        try:
            _copies[reference] = ray.get(reference, timeout=FETCH_SECONDS)
        except ray.exceptions.GetTimeoutError:
            raise ResourceError(
                f"the driver's node did not deliver the job's description within {FETCH_SECONDS:g} s: check the "
                "network between the nodes, and whether the driver still runs"
            ) from None
    return _copies[reference]
