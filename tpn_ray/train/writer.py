"""Commits checkpoints while training goes on. Runs on the worker of rank 0, in a thread of its own.

The step waits only for a copy of the tensors, or for the commit before if that is still under way. Storage that fails
for a while costs no training: the next commit carries what the failed one should have put on record.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from tpn_ray import checkpoint as checkpoints
from tpn_ray.checkpoint import Checkpoint
from tpn_ray.errors import StorageError, TrainingError
from tpn_ray.train import run_folder
from tpn_ray.train.events import Committed, Event, Notice
from tpn_ray.train.record import Record
from tpn_ray.train.saving import Saving

FAILURES_ALLOWED = 3
"""Commits in a row that storage may fail before training stops; one at the very end may not fail."""

State = TypeVar("State")


def copied(state: State) -> State:
    """The same nest of dicts, lists and tuples with its tensors copied to the CPU, where no step changes them."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)  # type: ignore[return-value]
    if isinstance(state, dict):
        return type(state)((key, copied(value)) for key, value in state.items())
    if isinstance(state, (list, tuple)):
        return type(state)(copied(value) for value in state)
    return state


class Writer:
    """Writes one checkpoint after the other into the folder of a run, and deletes those that need not stay."""

    def __init__(self, run_uri: str, saving: Saving, tell: Callable[[Event], None]) -> None:
        self._run_uri, self._saving, self._tell = run_uri, saving, tell
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None
        self._waiting: list[Record] = []
        """Records whose checkpoints could not be committed."""
        self._failures = 0
        scored = {record.step: record.scores.get("val_top1") for record in run_folder.read_records(run_uri)}
        self._top1 = {step: scored.get(step) for step in run_folder.committed_steps(run_uri)}

    def commit(self, checkpoint: Checkpoint, record: Record) -> None:
        """Begin to write a checkpoint whose tensors nobody changes any more (`copied`).

        Raises what the commit before it raised, if that is to stop training.
        """
        self._settle(final=False)
        self._under_way = self._pool.submit(self._write, checkpoint, record)

    def check(self) -> None:
        """Raise, without waiting, what has to stop training."""
        if self._under_way is not None and self._under_way.done():
            self._settle(final=False)

    def close(self) -> None:
        """Wait until everything is in storage; raises if it is not."""
        self._settle(final=True)
        self._pool.shutdown()

    def _settle(self, final: bool) -> None:
        if self._under_way is None:
            return
        under_way, self._under_way = self._under_way, None
        try:
            under_way.result()
            self._failures = 0
        except StorageError as error:
            self._failures += 1
            if final or self._failures > FAILURES_ALLOWED:
                raise
            self._tell(Notice(text=f"a checkpoint could not be written, training goes on without it: {error}"))

    def _write(self, checkpoint: Checkpoint, record: Record) -> None:
        _refuse_no_numbers(checkpoint)
        self._waiting.append(record)
        for waiting in self._waiting:
            run_folder.write_record(self._run_uri, waiting)
        uri = run_folder.checkpoint_uri(self._run_uri, checkpoint.step)
        checkpoints.save(uri, checkpoint)
        committed, self._waiting = self._waiting, []
        self._top1[checkpoint.step] = record.scores.get("val_top1")
        for done in committed:
            self._tell(Committed.of(done, uri))
        for step in self._saving.to_delete(self._top1):
            run_folder.delete_checkpoint(self._run_uri, step)
            del self._top1[step]


def _refuse_no_numbers(checkpoint: Checkpoint) -> None:
    """A loss that is not a number ruins the weights one step later: such a checkpoint must not replace a good one."""
    for name, value in checkpoint.weights.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            raise TrainingError(
                f"{name} holds values that are no numbers after step {checkpoint.step}; the checkpoint before is kept"
            )
