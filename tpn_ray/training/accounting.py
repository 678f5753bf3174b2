"""The accounts of a run: its bad videos, its time, and its commits. Runs on the driver."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

from tpn_ray import storage
from tpn_ray.budget import Bad, check_budget
from tpn_ray.data.plan import Plan
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import BudgetError, StorageError, TrainingError
from tpn_ray.training import bad_record, run_folder
from tpn_ray.training.events import BadVideos, Committed, Diverged, Event, Failed, Notice, Started, Stopped
from tpn_ray.training.goodput import PEAK, Goodput

SAVE_AGAIN_SECONDS = 30.0
"""Pause before bad videos are recorded again after storage refused them."""


@dataclass
class RunLedger:
    """Records bad videos, time, and commits of a run, enforces its budget, and passes every event on."""

    manifest: Manifest
    plan: Plan
    max_bad: Fraction
    on_event: Callable[[Event], None]
    goodput: Goodput
    run_uri: str
    bad: dict[str, Bad] = field(default_factory=dict)
    """Bad videos by id: those on record, and those found since."""
    speeds: list[float] = field(default_factory=list)
    peak_megabytes: float = 0.0
    """Largest memory of any worker."""
    committed: int = 0
    """Last step on record that was passed on."""
    commits: int = 0
    """Number of checkpoints committed by this attempt so far."""
    placement_group: str = ""
    """Placement group of the running workers."""
    save_at: float = math.inf
    """When `bad` is to be recorded, by the monotonic clock."""
    rows: dict[str, list[int]] = field(default_factory=dict)
    """Rows of the manifest by split, filled on demand."""
    noticed: dict[str, str] = field(default_factory=dict)
    """Subject of a notice -> the last one about it."""

    def __call__(self, event: Event) -> None:
        match event:
            case Notice() if event.about:
                if self.noticed.get(event.about) == event.text:
                    return
                self.noticed[event.about] = event.text
            case Started():
                self.goodput.started(event.at, event.workers)
                self.committed = max(self.committed, event.step)
                self.placement_group = event.placement_group
            case Failed():
                self.goodput.failed(event.at)
            case Committed():
                if event.step <= self.committed:
                    return
                self.committed, self.commits = event.step, self.commits + 1
                self.goodput.committed(event.history)
                self.speeds += [metrics.values["clips_per_second"] for metrics in event.history]
                peaks = (metrics.values.get(PEAK, 0.0) for metrics in event.history)
                self.peak_megabytes = max(self.peak_megabytes, *peaks, 0.0)
            case BadVideos():
                self._book(event)
        self.on_event(event)
        if isinstance(event, Diverged):
            self._stop(event)
        if isinstance(event, Stopped):
            raise event.error
        if isinstance(event, BadVideos):  # only now: the videos on record may have been repaired since
            self._hold_to_budget()

    def catch_up(self, run_uri: str) -> None:
        """Pass on what is on record but was lost on its way."""
        there = run_folder.committed_steps(run_uri)
        for record in run_folder.read_records(run_uri, after=self.committed):
            self(Committed.of(record, run_folder.place_of(run_uri, record.step, there)))

    def take_up(self) -> None:
        """Load the bad videos that are on record."""
        self.bad, fault = bad_record.read(self.run_uri, self.manifest.version)
        if fault:
            self(Notice(text=fault))

    def save(self, now: float = math.inf) -> None:
        """Record new bad videos. If storage refuses, retry later and keep the run going.

        While the run is active (`now` is given), events must not wait for storage.
        """
        if self.save_at == math.inf or now < self.save_at:
            return
        try:
            with storage.patience(math.inf if now == math.inf else 0.0):
                bad_record.write(self.run_uri, self.manifest.version, self.bad)
        except StorageError:
            self.save_at = time.monotonic() + SAVE_AGAIN_SECONDS
        else:
            self.save_at = math.inf

    def _book(self, event: BadVideos) -> None:
        rows, manifest = self._rows(event.split), self.manifest
        for row, reason, message in event.found:
            id, about = manifest.ids[rows[row]], (manifest.uris[rows[row]], reason, message)
            if self.bad.get(id) != about:
                self.bad[id] = about
                self.save_at = min(self.save_at, time.monotonic())

    def _rows(self, split: str) -> list[int]:
        """Return the rows of a split, found once: a dataset has millions, and every bad video asks."""
        if split not in self.rows:
            splits = self.manifest.splits
            self.rows[split] = list(itertools.compress(range(len(splits)), map(split.__eq__, splits)))
        return self.rows[split]

    def _stop(self, event: Diverged) -> None:
        samples, rows = self.plan.slot(event.number, 1, event.step).samples, self._rows("train")
        raise TrainingError(
            f"the loss is {event.loss} at step {event.step}, micro-batch {event.number}; the last checkpoint is kept. "
            "Try a lower --optim.lr, a warm-up, or a smaller --optim.clip-norm. The videos were:\n  "
            + "\n  ".join(self.manifest.uris[rows[sample]] for sample in samples)
        )

    def _hold_to_budget(self) -> None:
        remedy = "the same command resumes from the last checkpoint"
        try:
            check_budget(self.bad, len(self.manifest), self.max_bad, self.bad.values(), remedy)
        except BudgetError:
            self.save()
            raise
