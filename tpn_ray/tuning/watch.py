"""A campaign's progress, read from its journal every now and then; and its metrics for dashboards. Runs on the
driver."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from tpn_ray import storage
from tpn_ray.errors import DamagedError, StorageError
from tpn_ray.training.gauges import set_campaign
from tpn_ray.tuning.journal import Journal, Trial

LOOK_SECONDS = 10.0
END_SECONDS = 20.0
"""Longest wait for the last look, which storage or a tracking server may hold up."""
STATES = ("done", "stopped", "failed", "begun", "waiting")


Look = Callable[[list[Trial]], None]
"""Is shown all trials of the journal every now and then."""


@contextlib.contextmanager
def watched(journal: Journal, *looks: Look, seconds: float = LOOK_SECONDS) -> Iterator[None]:
    """Show a campaign's trials to each of `looks` while the `with` block runs, and once more at its end."""
    ended = threading.Event()

    def look() -> None:
        while True:
            last = ended.wait(seconds)
            with contextlib.suppress(StorageError, DamagedError), storage.patience(0.0):
                trials = journal.trials()
                for one in looks:
                    one(trials)
            if last:
                return

    thread = threading.Thread(target=look, name="campaign-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(END_SECONDS)


def show(name: str, known: Sequence[Trial], *, trials: int, epochs: int, in_full: int) -> None:
    """Set the metrics of a campaign whose journal has these trials."""
    states = Counter(_state(trial, in_full) for trial in known)
    states["waiting"] += max(0, trials - len(known))
    for state in STATES:
        set_campaign(name, "campaign_trials", states[state], state=state)
    set_campaign(name, "campaign_epochs", sum(trial.epochs for trial in known), state="trained")
    set_campaign(name, "campaign_epochs", epochs, state="planned")
    if any(trial.points for trial in known):
        set_campaign(name, "campaign_best_top1", max(trial.score for trial in known))


def _state(trial: Trial, in_full: int) -> str:
    if trial.failure:
        return "failed"
    if trial.epochs >= in_full:
        return "done"
    return "stopped" if trial.stopped else "begun"
