"""A campaign's progress for dashboards, read from its journal every now and then. Runs on the driver."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Sequence

from tpn_ray import storage
from tpn_ray.errors import DamagedError, StorageError
from tpn_ray.training.gauges import set_campaign
from tpn_ray.tuning.journal import Journal, Trial

LOOK_SECONDS = 30.0
STATES = ("done", "stopped", "failed", "begun", "waiting")


@contextlib.contextmanager
def watched(name: str, journal: Journal, *, trials: int, epochs: int, in_full: int) -> Iterator[None]:
    """Keep the metrics of a campaign up while the `with` block runs: of `trials` trials that train `epochs` epochs
    together, each of at most `in_full`."""
    ended = threading.Event()

    def look() -> None:
        while True:
            last = ended.wait(LOOK_SECONDS)
            with contextlib.suppress(StorageError, DamagedError), storage.patience(0.0):
                show(name, journal.trials(), trials=trials, epochs=epochs, in_full=in_full)
            if last:
                return

    thread = threading.Thread(target=look, name="campaign-gauges", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


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
