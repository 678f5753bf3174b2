"""Writing of checkpoints while training continues. Runs on the worker of rank 0, in its own thread.

The step waits only for a copy of the tensors, or for the previous commit if that is still in progress. Failing storage
costs no training for `Saving.give_up_seconds`: the next commit carries the records that the failed one should have
written. Files that could not be deleted are reported once, and retried with every commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from tpn_ray import checkpoint as checkpoints
from tpn_ray.checkpoint import Checkpoint
from tpn_ray.errors import StorageError, TrainingError
from tpn_ray.lease import Token
from tpn_ray.score import score_of
from tpn_ray.training import run_folder
from tpn_ray.training.events import Committed, Event, Notice
from tpn_ray.training.record import Record
from tpn_ray.training.run_folder import Contents
from tpn_ray.training.saving import Saving

AGAIN_SECONDS = 10.0
"""Pause between two attempts to write the last checkpoint of a run."""

State = TypeVar("State")


def copied(state: State) -> State:
    """Copy a nest of dicts, lists, and tuples, with its tensors on the CPU, where no step changes them."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)  # type: ignore[return-value]
    if isinstance(state, dict):
        return type(state)((key, copied(value)) for key, value in state.items())
    if isinstance(state, (list, tuple)):
        return type(state)(copied(value) for value in state)
    return state


class Writer:
    """Writes one checkpoint after another into the folder of a run, and deletes those that need not be kept.

    It is the only writer there, which `token` ensures; without a token, its caller must.
    """

    def __init__(
        self,
        run_uri: str,
        saving: Saving,
        tell: Callable[[Event], None],
        token: Token | None = None,
        begun: int | None = None,
    ) -> None:
        self._run_uri, self._saving, self._tell, self._token = run_uri, saving, tell, token
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None
        self._newest: tuple[Checkpoint, float] | None = None
        """The checkpoint in progress, and when its commit began."""
        self._waiting: list[Record] = []
        """Records that are not committed yet."""
        self._failing_since: float | None = None
        committed = run_folder.committed_steps(run_uri)
        self._begun = max(committed, default=0) if begun is None else begun
        """The step from which training resumes: nothing stored of later steps is its own."""
        self._recorded = set[int]()
        """Steps above `_begun` that this writer put on record."""
        self._undeleted = set[str]()
        scored = {record.step: _score(record) for record in run_folder.read_records(run_uri)}
        self._scores = {step: scored.get(step) for step in committed if step <= self._begun}

    def commit(self, checkpoint: Checkpoint, record: Record) -> None:
        """Start writing a checkpoint whose tensors no longer change (`copied`).

        Raises what the previous commit raised, if that must stop training.
        """
        self.settle()
        self._waiting.append(record)
        self._submit(checkpoint)

    def check(self) -> None:
        """Raise, without waiting, what must stop training."""
        if self._under_way is not None and self._under_way.done():
            self.settle()

    def close(self) -> None:
        """Wait until everything is in storage, retrying until it is. Raises what must stop that."""
        then = f"it is the last one, and is retried every {AGAIN_SECONDS:g} s"
        self.settle(then)
        while self._newest is not None:
            time.sleep(AGAIN_SECONDS)
            self._submit(self._newest[0])
            self.settle(then)
        self._pool.shutdown()

    def _submit(self, checkpoint: Checkpoint) -> None:
        self._newest = (checkpoint, time.monotonic())
        self._under_way = self._pool.submit(self._write, checkpoint, tuple(self._waiting))

    def settle(self, then: str = "training continues without it") -> None:
        """Wait for the commit in progress. `_newest` is then what could not be committed, if anything."""
        if self._under_way is None or self._newest is None:
            return
        under_way, self._under_way = self._under_way, None
        checkpoint, begun = self._newest
        try:
            under_way.result()
        except StorageError as error:
            self._failing_since = begun if self._failing_since is None else self._failing_since
            seconds = time.monotonic() - self._failing_since
            if seconds >= self._saving.give_up_seconds:
                raise StorageError(self._lost(checkpoint.step, seconds, error)) from error
            self._tell(Notice(text=f"a checkpoint could not be written, {then}: {error}"))
        else:
            self._newest, self._failing_since, self._waiting = None, None, []

    def _lost(self, step: int, seconds: float, error: StorageError) -> str:
        kept = max(self._scores, default=0)
        return (
            f"no checkpoint could be written for {seconds / 60:.0f} min, and training stops (--saving.give-up-seconds "
            f"{self._saving.give_up_seconds:g}): {error}\nThe work of steps {kept + 1} to {step} is lost; the same "
            f"command with the same --name resumes from step {kept}"
        )

    def _write(self, checkpoint: Checkpoint, records: Sequence[Record]) -> None:
        _refuse_no_numbers(checkpoint)
        self._tidy(checkpoint.step)  # the remains of an attempt may take the space that is missing
        for record in records:
            run_folder.write_record(self._run_uri, record, self._token)
            self._recorded.add(record.step)
        uri = run_folder.checkpoint_uri(self._run_uri, checkpoint.step)
        checkpoints.save(uri, checkpoint, self._token)
        self._scores[checkpoint.step] = _score(records[-1])
        for record in records:
            self._tell(Committed.of(record, uri))
        for step in self._saving.to_delete(self._scores):
            del self._scores[step]
        try:
            self._tidy()
        except StorageError as error:  # this checkpoint is committed, whatever happens to others
            self._tell(Notice(text=f"old checkpoints are not deleted yet: {error}"))

    def _tidy(self, ahead: int = 0) -> None:
        """Delete what need not be kept, and everything of step `ahead`. Raises LeaseError, and StorageError only if
        nothing can be listed."""
        if self._token:
            self._token.check()
        found = run_folder.contents(self._run_uri)
        for step in _superfluous(found, self._scores.keys(), ahead):
            self._delete(run_folder.checkpoint_uri(self._run_uri, step), run_folder.delete_checkpoint, step)
        for step in found.records - self._recorded:
            if step > self._begun:  # of an attempt that got past its checkpoints, or of an earlier job
                self._delete(f"the record of step {step}", run_folder.delete_record, step)

    def _delete(self, what: str, delete: Callable[[str, int], None], step: int) -> None:
        try:
            delete(self._run_uri, step)
            self._undeleted.discard(what)
        except StorageError as error:
            if what not in self._undeleted:
                self._undeleted.add(what)
                self._tell(Notice(text=f"{what} could not be deleted, which is retried with every checkpoint: {error}"))


def _superfluous(found: Contents, kept: Iterable[int], ahead: int) -> list[int]:
    """Return the steps whose folders go: all but those kept, and damaged ones that were set aside."""
    stay = {*kept, *found.set_aside} - {ahead}
    return sorted(step for step in found.folders if step not in stay)


def _refuse_no_numbers(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint with non-finite weights, as after a loss of nan: it must not replace a good one."""
    for name, value in checkpoint.weights.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            raise TrainingError(
                f"{name} holds values that are not finite after step {checkpoint.step}; the previous checkpoint is kept"
            )


def _score(record: Record) -> float | None:
    return score_of(record.scores) if record.scores else None
