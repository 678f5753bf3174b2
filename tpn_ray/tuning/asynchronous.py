"""Campaigns under Ray Tune's schedulers, which decide as results come in. Runs on the driver.

The journal, not Tune, is the state: every submission builds a new Tuner, whose trials first report what they had
measured before. A kill can therefore damage no state that matters, and nothing is trained twice. Which trials are
stopped, however, depends on which came first, as always with these schedulers.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ray.tune
from ray.tune import schedulers
from ray.tune.execution import class_cache
from ray.tune.search import Searcher

from tpn_ray import storage
from tpn_ray.errors import ConfigError, TrainingError
from tpn_ray.training.placement import release
from tpn_ray.tuning import search
from tpn_ray.tuning.halving import Search
from tpn_ray.tuning.journal import Journal, Trial
from tpn_ray.tuning.mutation import generator, mutated
from tpn_ray.tuning.rungs import Objectives
from tpn_ray.tuning.search import Question, Seen
from tpn_ray.tuning.space import Sample, Space
from tpn_ray.tuning.trial import TOLD_AGAIN, Campaign, number_of, run_trial

METRIC = "val_top1"
TRIAL_CPUS = 0.01
"""CPUs of a trial's own process, which only waits; its workers reserve what they need themselves."""
RETRIES = 3
"""Times that a trial whose process was lost is restarted from its last checkpoint."""
LOOK_SECONDS = 1.0
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
GONE_SECONDS = 3.0
"""Time after which the processes of a stopped or paused trial are gone and do not replace what is taken from them."""
IN_FLIGHT = ("loss.", "optim.", "model.alpha", "model.dropout")
"""Fields that may change while a network trains: they change no weight's shape and no clip."""


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


class Population(schedulers.PopulationBasedTraining):  # type: ignore[misc]  # Ray's classes are untyped here
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

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide what to do with a trial after its evaluation."""
        decision = str(super().on_trial_result(controller, trial, result))
        # A pause ends the process so that others can catch up. Repeated reports take only a moment and need none.
        return self.CONTINUE if result.get(TOLD_AGAIN) and decision == self.PAUSE else decision

    def _generator(self, trial: Any) -> np.random.Generator:
        """Return the generator of all draws for a trial at its current epoch."""
        number = number_of(trial.trial_id, trial.config)
        return generator(self.wanted.seed, number, self._trial_state[trial].last_result["epoch"])

    def _checkpoint_or_exploit(self, trial: Any, controller: Any, upper: list[Any], lower: list[Any]) -> None:
        """Choose the donor reproducibly. Ray would choose it with its own random generator."""
        if trial in lower:
            donors = sorted(upper, key=lambda donor: number_of(donor.trial_id, donor.config))
            upper = [donors[self._generator(trial).integers(len(donors))]]
        super()._checkpoint_or_exploit(trial, controller, upper, lower)

    def _get_new_config(self, trial: Any, donor: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the donor's settings, mutated, and what was done to each, which is left empty."""
        random = self._generator(trial)
        sample = mutated(donor.config["sample"], self.changing, self.wanted.is_valid, random)
        return {**donor.config, "sample": sample}, {}

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


def run(
    campaign: Campaign,
    wanted: Search,
    scheduler: str,
    *,
    max_concurrent: int,
    look: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Run or resume the campaign. Its results are in the journal."""
    # Tune hands the driver's keys to trials in their runtime environment, which Ray logs and its dashboard shows. Nodes
    # have their own keys.
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(KEYS)
    pointers = scheduler in WITH_POINTERS
    trainable = ray.tune.with_resources(
        ray.tune.with_parameters(run_trial, campaign=campaign, pointers=pointers), {"CPU": TRIAL_CPUS}
    )
    asks = wanted.searcher in search.MODELS
    if asks and scheduler == "pbt":
        raise ConfigError(f"pbt mutates settings itself: use --searcher random or grid, not {wanted.searcher}")
    filesystem, path = storage.patient_filesystem(storage.join(campaign.uri, "tune"))
    tuner = ray.tune.Tuner(
        trainable,
        param_space={} if asks else {"sample": ray.tune.grid_search(all_samples(campaign.journal, wanted))},
        tune_config=ray.tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=wanted.samples if asks else 1,
            max_concurrent_trials=max_concurrent,
            search_alg=Asking(campaign.journal, wanted) if asks else None,
            scheduler=SCHEDULERS[scheduler](campaign, wanted),
        ),
        run_config=ray.tune.RunConfig(
            name=campaign.session,
            storage_path=path,
            storage_filesystem=filesystem,
            verbose=0,
            failure_config=ray.tune.FailureConfig(max_failures=RETRIES),
            callbacks=[Watch(campaign.journal, campaign.recipe.loop.epochs, say)],
        ),
    )
    _fit(tuner, look)


def _fit(tuner: ray.tune.Tuner, look: Callable[[], None]) -> None:
    """Run the tuner in a thread, so that `look` can end the wait for it."""
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            tuner.fit()
        except BaseException as error:  # passed on to the calling thread
            failure.append(error)

    thread = threading.Thread(target=fit, name="ray-tune", daemon=True)
    thread.start()
    while thread.is_alive():
        look()
        thread.join(LOOK_SECONDS)
    if failure:
        raise TrainingError(f"Ray Tune gave up: {str(failure[0]).strip().splitlines()[-1]}") from failure[0]


def all_samples(journal: Journal, wanted: Search) -> list[Sample]:
    """Return the current samples of all trials, by number, of a campaign that uses no model."""
    waves = journal.waves()
    if not waves:
        question = Question(
            space=wanted.space, is_valid=wanted.is_valid, seen=[], first=0, count=wanted.samples, seed=wanted.seed
        )
        waves = [journal.write_wave(0, search.suggest(wanted.searcher, question))]
    known = {trial.number: trial.sample for trial in journal.trials()}
    return [known.get(number, sample) for number, sample in enumerate(waves[0])]


class Asking(Searcher):  # type: ignore[misc]
    """Asks the model for one trial at a time, and repeats what it had suggested before a kill."""

    def __init__(self, journal: Journal, wanted: Search) -> None:
        super().__init__(metric=METRIC, mode="max")
        self.journal, self.wanted, self.given = journal, wanted, 0

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return Tune's next trial."""
        waves = self.journal.waves()
        if self.given < len(waves):
            (sample,) = waves[self.given]
        else:
            (sample,) = self.journal.write_wave(self.given, self._new())
        self.given += 1
        return {"number": self.given - 1, "sample": sample}

    def _new(self) -> list[Sample]:
        seen = everything_seen(self.journal.trials(), self.wanted.objectives)
        question = Question(
            space=self.wanted.space,
            is_valid=self.wanted.is_valid,
            seen=seen,
            first=self.given,
            count=1,
            seed=self.wanted.seed,
        )
        return search.suggest(self.wanted.searcher, question)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: the journal has the result."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the journal is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: nothing was saved."""


def everything_seen(trials: list[Trial], objectives: Objectives) -> list[Seen]:
    """Return all scores so far."""
    return [
        Seen(sample=trial.sample, epoch=point.epoch, scores=objectives(trial, point.epoch))
        for trial in trials
        for point in trial.points
        if trial.repeat_of is None
    ]


class Watch(ray.tune.Callback):  # type: ignore[misc]
    """Prints reports, records which trials were stopped or lost their process for good, and frees what they held."""

    def __init__(self, journal: Journal, epochs: int, say: Callable[[str], None]) -> None:
        """Tune stores this object: it must not hold the campaign, whose tracking URI may hold a password."""
        self.journal, self.epochs, self.say = journal, epochs, say
        self.idle_since: dict[str, float] = {}
        """Tune's id of a trial that has no process now -> since when."""

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        for trial in trials:
            if trial.status in ("PENDING", "RUNNING"):
                self.idle_since.pop(trial.trial_id, None)
            elif trial.trial_id not in self.idle_since:
                self.idle_since[trial.trial_id] = time.monotonic()
            elif time.monotonic() - self.idle_since[trial.trial_id] - GONE_SECONDS > 0:
                self.idle_since[trial.trial_id] = math.inf  # once
                self._free(trial)

    def on_experiment_end(self, trials: Any, **info: Any) -> None:
        for trial in trials:
            if self.idle_since.get(trial.trial_id) != math.inf:
                self._free(trial)

    def _free(self, trial: Any) -> None:
        known = self._known(trial)
        if known:
            release(known.placement_group)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        if METRIC in result and not result.get(TOLD_AGAIN):
            self.say(f"trial-{result['number']:04d}  epoch {result['epoch']}  validation top-1 {result[METRIC]:.1%}")

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        known = self._known(trial)
        if known and not known.failure and not known.stopped and known.epochs < self.epochs:
            self.journal.write(dataclasses.replace(known, stopped=True))

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        number = number_of(trial.trial_id, trial.config)
        known = self._known(trial) or Trial(number=number, sample=trial.config["sample"])
        if trial.num_failures > RETRIES:
            said = str(trial.get_error() or "no message").strip().splitlines()[-1]
            failure = f"its process failed {RETRIES + 1} times, at last with: {said}"
            self.journal.write(dataclasses.replace(known, failure=failure))

    def _known(self, trial: Any) -> Trial | None:
        return self.journal.read(number_of(trial.trial_id, trial.config))
