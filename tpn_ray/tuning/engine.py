"""THE ENGINE: every campaign is a Ray Tune `Tuner`. Runs on the driver.

The journal, not Tune, is the state: every submission builds a new Tuner, whose trials first report what they had
measured before. A kill can therefore damage no state that matters, and nothing is trained twice.
"""

from __future__ import annotations

import dataclasses
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import ray.tune
from ray.tune import schedulers
from ray.tune.execution import class_cache
from ray.tune.search import Searcher

from tpn_ray import mailbox, storage
from tpn_ray.errors import TpnRayError, TrainingError
from tpn_ray.score import MAP, TOP1
from tpn_ray.training.placement import release
from tpn_ray.tuning import search
from tpn_ray.tuning.halving import Search
from tpn_ray.tuning.journal import Journal, Trial
from tpn_ray.tuning.rungs import Objectives
from tpn_ray.tuning.schedulers import Halving
from tpn_ray.tuning.search import Seen
from tpn_ray.tuning.space import Sample
from tpn_ray.tuning.trial import Campaign, run_trial

TRIAL_TAKES = {"memory": 1}
"""What a trial's own process reserves, in bytes: it only waits, and its workers reserve what they need themselves. Tune
asks for something, and with a share of a CPU, a cluster of two would be too small for a worker and decoding."""
RETRIES = 3
"""Times in a row that a trial whose process was lost is restarted from its last checkpoint."""
LOOK_SECONDS = 1.0
END_SECONDS = 60.0
"""Longest wait for Tune to end the trials of a campaign that stops."""
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
GONE_SECONDS = 3.0
"""Time after which the processes of a stopped or paused trial are gone and do not replace what is taken from them."""


class _Suggestions(Searcher):  # type: ignore[misc]  # Ray's classes are untyped here
    """Gives Tune trials by number. Neither it nor what Tune tells it is stored: the journal has everything."""

    def __init__(self) -> None:
        super().__init__()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing."""


class Climbing(_Suggestions):
    """Gives Tune the trials that a ladder begins. The scheduler resumes those that Tune has already."""

    def __init__(self, halving: Halving) -> None:
        super().__init__()
        self.halving, self.ladder = halving, halving.ladder

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Return that the ladder keeps to this itself: Tune would count paused trials."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return Tune's next trial. While no trial is left, Tune asks only this, for ten minutes."""
        self.halving.take_note()
        work = self.ladder.next()
        if work is None:
            return str(self.FINISHED) if self.ladder.over else None
        if work.trial.number in self.ladder.handed:
            return None
        self.ladder.begin(work)
        return {"number": work.trial.number, "sample": work.trial.sample, "until": work.epoch}


class OneByOne(_Suggestions):
    """Gives Tune all trials in order. A model is asked for each of them when it is due."""

    def __init__(self, journal: Journal, wanted: Search, epochs: int) -> None:
        super().__init__()
        self.journal, self.wanted, self.epochs, self.given = journal, wanted, epochs, 0

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return Tune's next trial, as it was suggested before a kill, or mutated since."""
        trial = self.journal.read(self.given) or Trial(number=self.given, sample=self._sample())
        self.journal.write(trial)  # its process reads it there
        self.given += 1
        return {"number": trial.number, "sample": trial.sample, "until": self.epochs}

    def _sample(self) -> Sample:
        waves, asks = self.journal.waves(), self.wanted.searcher in search.MODELS
        wave, place = (self.given, 0) if asks else (0, self.given)
        if wave == len(waves):
            seen = everything_seen(self.journal.trials(), self.wanted.objectives) if asks else []
            samples = self.wanted.suggest(seen, wave, 1 if asks else self.wanted.samples)
            waves.append(self.journal.write_wave(wave, samples))
        return waves[wave][place]


def everything_seen(trials: list[Trial], objectives: Objectives) -> list[Seen]:
    """Return all scores so far."""
    return [
        Seen(sample=trial.sample, epoch=point.epoch, scores=objectives(trial, point.epoch))
        for trial in trials
        for point in trial.points
        if trial.repeat_of is None
    ]


class Watch(ray.tune.Callback):  # type: ignore[misc]
    """Records which trials were stopped or lost their process for good, and frees what they held."""

    def __init__(self, journal: Journal, epochs: int, say: Callable[[str], None], *, pauses: bool) -> None:
        """Tune stores this object: it must not hold the campaign, whose tracking URI may hold a password.

        With `pauses`, a trial that ends early was paused, and not stopped by a scheduler.
        """
        self.journal, self.epochs, self.say, self.pauses = journal, epochs, say, pauses
        self.idle_since: dict[str, float] = {}
        """Tune's id of a trial that has no process now -> since when."""
        self.losses = Counter[int]()
        """Trial -> how often in a row its process was lost."""

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
        known = self.journal.read(trial.config["number"])
        if known:
            release(known.placement_group)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        self.losses.pop(trial.config["number"], None)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        known = self.journal.read(trial.config["number"])
        if not self.pauses and known and not known.failure and not known.stopped and known.epochs < self.epochs:
            self.journal.write(dataclasses.replace(known, stopped=True))

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        number = trial.config["number"]
        self.losses[number] += 1
        self.say(f"{_name(trial)} lost its process; it resumes from its last checkpoint")
        known = self.journal.read(number)
        if known and self.losses[number] > RETRIES:  # its next process finds this, and ends
            said = str(trial.get_error() or "no message").strip().splitlines()[-1]
            failure = f"its process failed {RETRIES + 1} times in a row, at last with: {said}"
            self.journal.write(dataclasses.replace(known, failure=failure))


class _Ending(ray.tune.Stopper):  # type: ignore[misc]
    """Ends all trials when asked to."""

    asked = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.asked


def fit(
    campaign: Campaign,
    scheduler: schedulers.TrialScheduler,
    suggestions: Searcher,
    *,
    name: str,
    samples: int,
    max_concurrent: int,
    pauses: bool,
    keeps_all: bool = False,
    callbacks: Sequence[ray.tune.Callback] = (),
    look: Callable[[], None],
    say: Callable[[str], None],
) -> ray.tune.ResultGrid:
    """Run trials, at most `samples` (-1: until `suggestions` end), and return Tune's results; the journal has them too.

    `name` is that of Tune's own folder, which nobody has used before.
    With `pauses`, trials are paused only when their workers are gone, so that their processes can take on others. With
    `keeps_all`, no checkpoint is pruned, since other trials may start from it.
    """
    # Tune hands the driver's keys to trials in their runtime environment, which Ray logs and its dashboard shows. Nodes
    # have their own keys.
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(KEYS)
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # `Watch` says it in a line
    mail, ending = mailbox.beside_driver(), _Ending()
    filesystem, path = storage.patient_filesystem(storage.join(campaign.uri, "tune"))
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(
            ray.tune.with_parameters(run_trial, campaign=campaign, mail=mail, keeps_all=keeps_all), TRIAL_TAKES
        ),
        tune_config=ray.tune.TuneConfig(
            metric=MAP if campaign.recipe.model.multi_label else TOP1,
            mode="max",
            num_samples=samples,
            max_concurrent_trials=max_concurrent,
            search_alg=suggestions,
            scheduler=scheduler,
            reuse_actors=pauses,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=ray.tune.RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            verbose=0,
            stop=ending,
            failure_config=ray.tune.FailureConfig(max_failures=-1),  # `Watch` counts
            callbacks=[Watch(campaign.journal, campaign.recipe.loop.epochs, say, pauses=pauses), *callbacks],
        ),
    )
    return _fit(tuner, ending, mail, look, say)


def _name(trial: Any) -> str:
    return Trial(number=trial.config["number"], sample={}).name


def _fit(
    tuner: ray.tune.Tuner, ending: _Ending, mail: Any, look: Callable[[], None], say: Callable[[str], None]
) -> ray.tune.ResultGrid:
    """Run the tuner in a thread, so that `look`, and errors that are no trial's own, can end it."""
    results: list[ray.tune.ResultGrid] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            results.append(tuner.fit())
        except BaseException as error:  # passed on to the calling thread
            failure.append(error)

    thread = threading.Thread(target=run, name="ray-tune", daemon=True)
    thread.start()
    running = True
    try:
        while running:
            thread.join(LOOK_SECONDS)
            running = thread.is_alive()  # read before taking: what was put before the end is then taken after it
            for message in mailbox.take(mail):
                if isinstance(message, TpnRayError):
                    raise message
                say(message)
            if running:
                look()
    except TpnRayError:
        ending.asked = True
        thread.join(END_SECONDS)
        raise
    if failure and isinstance(failure[0], TpnRayError):
        raise failure[0]
    if failure:
        raise TrainingError(f"Ray Tune gave up: {str(failure[0]).strip().splitlines()[-1]}") from failure[0]
    return results[0]
