"""SCHEDULERS: which of Ray Tune's trials run, pause, and stop. Runs on the driver, in Ray Tune's control loop.

`Halving` asks the campaign's ladder, whose answers are functions of the journal. The others are Ray Tune's own, which
decide as results come in: which trials are stopped depends on which came first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune import schedulers

from tpn_ray.errors import ConfigError
from tpn_ray.tuning.halving import Ladder, Search
from tpn_ray.tuning.mutation import generator, mutated
from tpn_ray.tuning.space import Space
from tpn_ray.tuning.trial import TOLD_AGAIN, Campaign

IN_FLIGHT = ("loss.", "optim.", "model.alpha", "model.dropout")
"""Fields that may change while a network trains: they change no weight's shape and no clip."""


class Halving(schedulers.FIFOScheduler):  # type: ignore[misc]  # Ray's classes are untyped here
    """Pauses every trial where the ladder says, and resumes those that it promotes."""

    def __init__(self, ladder: Ladder) -> None:
        super().__init__()
        self.ladder, self.trials = ladder, dict[int, Any]()

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        """Remember Tune's trial of that number."""
        self.trials[trial.config["number"]] = trial

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Pause at the end of the work that was begun."""
        if result["epoch"] < trial.config["until"]:
            return str(self.CONTINUE)
        return str(self.STOP if result["epoch"] == self.ladder.bracket.epochs[-1] else self.PAUSE)

    def take_note(self) -> None:
        """Tell the ladder which trials no longer run."""
        for number in list(self.ladder.running):
            if self.trials[number].status == "PAUSED" or self.trials[number].is_finished():
                self.ladder.end(number)

    def choose_trial_to_run(self, controller: Any) -> Any:
        """Return a paused trial that is to go on, or None. Tune starts new trials by itself. Called in every step."""
        self.take_note()
        if self.ladder.over:
            for trial in self.trials.values():
                controller.stop_trial(trial)
        work = self.ladder.next()
        trial = self.trials.get(work.trial.number) if work else None
        if work is None or trial is None:
            return None
        if trial.is_finished():
            self.ladder.fail(work.trial.number, f"TrainingError: its process ended before epoch {work.epoch}")
        if trial.status != "PAUSED":  # it is about to be
            return None
        self.ladder.begin(work)
        trial.set_config({**trial.config, "until": work.epoch})
        return trial


def no_scheduler(campaign: Campaign, wanted: Search) -> schedulers.TrialScheduler:
    """Run every trial to its end."""
    return schedulers.FIFOScheduler()


def asha(campaign: Campaign, wanted: Search) -> schedulers.TrialScheduler:
    """Return asynchronous successive halving: the worst two thirds stop at 1/9 and 1/3 of the epochs (Li et al.,
    2020)."""
    grace = first_decision(campaign)
    epochs = campaign.recipe.loop.epochs
    return schedulers.ASHAScheduler(time_attr="epoch", max_t=epochs, grace_period=grace, reduction_factor=3)


def median(campaign: Campaign, wanted: Search) -> schedulers.TrialScheduler:
    """Return the median stopping rule: a trial stops when its best is below the median of the others' running means
    (Golovin et al., 2017)."""
    return schedulers.MedianStoppingRule(
        time_attr="epoch", grace_period=first_decision(campaign), min_samples_required=3
    )


def hyperband(campaign: Campaign, wanted: Search) -> schedulers.TrialScheduler:
    """Return HyperBand: halvings that start at different epochs (Li et al., 2018). Trials pause and resume exactly."""
    return schedulers.HyperBandScheduler(time_attr="epoch", max_t=campaign.recipe.loop.epochs, reduction_factor=3)


def pbt(campaign: Campaign, wanted: Search) -> schedulers.TrialScheduler:
    """Return population-based training (Jaderberg et al., 2017): the worst trials continue with the weights of the best
    and different lambda, alpha, and rates."""
    changing = {name: one for name, one in wanted.space.items() if name.startswith(IN_FLIGHT)}
    if not changing:
        raise ConfigError(
            f"pbt changes fields in flight ({', '.join(IN_FLIGHT)}), and the space has none of them: "
            f"{', '.join(wanted.space)}"
        )

    return Population(wanted, changing, campaign.recipe.loop.epochs, first_decision(campaign))


class Population(schedulers.PopulationBasedTraining):  # type: ignore[misc]
    """Population-based training that mutates only where it can help.

    No trial is mutated at the last epoch, nor from a donor there, since nothing would be left to train. Reports that
    only repeat what was measured before this submission are ignored, since an earlier submission decided on them;
    otherwise a resumed population would mutate again and throw trained epochs away.
    """

    def __init__(self, wanted: Search, changing: Space, epochs: int, every_epochs: int) -> None:
        # The values given for each field are not used: `_get_new_config` mutates.
        fields = {"sample": dict.fromkeys(changing, ())}
        super().__init__(time_attr="epoch", perturbation_interval=every_epochs, hyperparam_mutations=fields)
        self.wanted, self.changing, self.epochs = wanted, changing, epochs

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        """Add a trial. Ray looks at nothing here but the search algorithm, and refuses every one, since one that learns
        would be told of mutated settings; `OneByOne` learns nothing from Tune."""
        super().on_trial_add(SimpleNamespace(search_alg=None), trial)

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide what to do with a trial after its evaluation."""
        decision = str(super().on_trial_result(controller, trial, result))
        # A pause ends the process so that others can catch up. Repeated reports take only a moment and need none.
        return self.CONTINUE if result.get(TOLD_AGAIN) and decision == self.PAUSE else decision

    def _generator(self, trial: Any) -> np.random.Generator:
        """Return the generator of all draws for a trial at its current epoch."""
        return generator(self.wanted.seed, trial.config["number"], self._trial_state[trial].last_result["epoch"])

    def _checkpoint_or_exploit(self, trial: Any, controller: Any, upper: list[Any], lower: list[Any]) -> None:
        """Choose the donor reproducibly. Ray would choose it with its own random generator."""
        if trial in lower:
            donors = sorted(upper, key=lambda donor: donor.config["number"])
            upper = [donors[self._generator(trial).integers(len(donors))]]
        super()._checkpoint_or_exploit(trial, controller, upper, lower)

    def _get_new_config(self, trial: Any, donor: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the donor's settings, mutated, and what was done to each, which is left empty."""
        random = self._generator(trial)
        sample = mutated(donor.config["sample"], self.changing, self.wanted.is_valid, random)
        return {**trial.config, "sample": sample}, {}

    def _exploit(self, controller: Any, trial: Any, donor: Any) -> None:
        result, given = self._trial_state[trial].last_result, self._trial_state[donor].last_result
        if not result.get(TOLD_AGAIN) and max(result["epoch"], given["epoch"]) < self.epochs:
            super()._exploit(controller, trial, donor)


SCHEDULERS: dict[str, Callable[[Campaign, Search], schedulers.TrialScheduler]] = {
    "asha": asha,
    "median": median,
    "hyperband": hyperband,
    "pbt": pbt,
    "none": no_scheduler,
}
WITH_POINTERS = ("hyperband", "pbt")
"""Schedulers that continue trials from checkpoints and must be given them."""


def first_decision(campaign: Campaign) -> int:
    """Return the epoch at which trials are first compared."""
    loop = campaign.recipe.loop
    return max(loop.evaluate_every_epochs, math.ceil(loop.epochs / 9))
