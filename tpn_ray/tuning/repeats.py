"""Repeats of the best settings with more seeds. Runs on the driver; no Ray.

A seed determines the data order, augmentation, initial weights, and dropout. A repeat is a trial of its own, trained in
full. Its number lies above those of the campaign's trials and follows from the trial and the seed, so that it is the
same after a kill.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tpn_ray.tuning.halving import Train, train_all
from tpn_ray.tuning.journal import Journal, Trial
from tpn_ray.tuning.rungs import Due

SEED = "loop.seed"


def repeat(
    journal: Journal,
    trials: Sequence[Trial],
    *,
    best: int,
    seeds: int,
    first_seed: int,
    epochs: int,
    train: Train,
    max_concurrent: int,
    look: Callable[[], None],
) -> list[Trial]:
    """Train each of the `best` complete trials with `seeds` more seeds; return the repeats, failed ones included."""
    complete = [trial for trial in trials if trial.epochs == epochs and not trial.failure][:best]
    wanted = [
        Trial(
            number=REPEATS_FROM + trial.number * SEEDS_AT_MOST + seed,
            sample={**trial.sample, SEED: first_seed + seed},
            repeat_of=trial.number,
        )
        for trial in complete
        for seed in range(1, seeds + 1)
    ]
    known = {trial.number: trial for trial in journal.trials()}
    now = [known.get(trial.number, trial) for trial in wanted]
    due = [Due(trial=trial, epoch=epochs) for trial in now if trial.at(epochs) is None and not trial.failure]
    done = {
        trial.number: trial for trial in train_all(journal, due, train=train, max_concurrent=max_concurrent, look=look)
    }
    return [done.get(trial.number, trial) for trial in now]


REPEATS_FROM, SEEDS_AT_MOST = 100_000, 100
"""First number used for repeats, above those of trials, and the block of numbers reserved per trial, so that a repeat's
number does not depend on what else is repeated."""
