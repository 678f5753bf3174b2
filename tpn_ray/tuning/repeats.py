"""Repeats of the best settings with more seeds. Pure; runs anywhere.

A seed determines the data order, augmentation, initial weights, and dropout. A repeat is a trial of its own, trained in
full. Its number lies above those of the campaign's trials and follows from the trial and the seed, so that it is the
same after a kill.
"""

from __future__ import annotations

from collections.abc import Sequence

from tpn_ray.tuning.journal import Trial

SEED = "loop.seed"
REPEATS_FROM, SEEDS_AT_MOST = 100_000, 100
"""First number used for repeats, above those of trials, and the block of numbers reserved per trial, so that a repeat's
number does not depend on what else is repeated."""


def repeats(trials: Sequence[Trial], *, best: int, seeds: int, first_seed: int, epochs: int) -> list[Trial]:
    """Return the repeats, with `seeds` more seeds, of the `best` complete ones of `trials`, which are sorted."""
    complete = [trial for trial in trials if trial.epochs == epochs and not trial.failure][:best]
    return [
        Trial(
            number=REPEATS_FROM + trial.number * SEEDS_AT_MOST + seed,
            sample={**trial.sample, SEED: first_seed + seed},
            repeat_of=trial.number,
        )
        for trial in complete
        for seed in range(1, seeds + 1)
    ]
