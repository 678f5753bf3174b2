"""A whole promotion campaign whose training is a made curve: for tests of what survives a kill.

`python -m tests.tuning.fake_campaign FOLDER KILLS` runs it in processes that are killed at random times, and prints its
table to FOLDER/0/table.txt. A campaign that is over before KILLS processes were killed is followed by another one, in
FOLDER/1, and so on. trained.log beside the table gets a line for every epoch that was trained.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from optuna.distributions import FloatDistribution

from tpn_ray import recipes
from tpn_ray.tuning.distributions import choice
from tpn_ray.tuning.engine import Climbing
from tpn_ray.tuning.halving import Ladder, Search
from tpn_ray.tuning.journal import Journal, Point, Trial
from tpn_ray.tuning.rungs import Bracket, ranked
from tpn_ray.tuning.schedulers import Halving
from tpn_ray.tuning.space import problem

BRACKET = Bracket(epochs=(1, 3, 9))
SEARCH = Search(
    space={"optim.lr": FloatDistribution(0.01, 1, log=True), "model.alpha": choice(((1, 2), (2, 4), (4, 8)))},
    searcher="tpe",
    samples=27,
    seed=3,
    is_valid=lambda sample: not problem(recipes.toy(), sample),
    objectives=lambda trial, epoch: (top1(trial, epoch),),
)
FAILS = 4
"""This trial fails in its first epoch."""
EPOCH_SECONDS = 0.004


def top1(trial: Trial, epoch: int) -> float:
    """Best at a rate of 0.1; alpha (2, 4) is ahead early, and (4, 8) late."""
    rate, alpha = trial.sample["optim.lr"], tuple(trial.sample["model.alpha"])
    late = {(1, 2): 0.0, (2, 4): 0.1, (4, 8): 0.04 * epoch}[alpha]
    return round(0.5 + late - abs(rate - 0.1) + 0.03 * epoch, 6)


class TuneTrial:
    """What the scheduler sees of a trial."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config, self.status = config, "RUNNING"

    def is_finished(self) -> bool:
        return self.status in ("TERMINATED", "ERROR")

    def set_config(self, config: dict[str, Any]) -> None:
        self.config = config


class FakeTune:
    """Ray Tune's control loop without processes: in every step, one trial of those that run trains an epoch."""

    def __init__(self, ladder: Ladder, folder: Path) -> None:
        self.halving = Halving(ladder)
        self.climbing = Climbing(self.halving)
        self.journal, self.folder, self.trials = ladder.journal, folder, list[TuneTrial]()
        self.told: list[tuple[int, int]] = []
        self.most = 0
        """Largest number of trials that ran at the same time."""

    def stop_trial(self, trial: TuneTrial) -> None:
        trial.status = "TERMINATED"

    def run(self) -> None:
        given: Any = None
        while given != Climbing.FINISHED or not all(trial.is_finished() for trial in self.trials):
            given = self.climbing.suggest("id") if given != Climbing.FINISHED else given
            waits = given is None and all(trial.is_finished() for trial in self.trials)
            assert not waits, "with no trial left, Tune would now do nothing else than ask, for ten minutes"
            if isinstance(given, dict):
                self.trials.append(TuneTrial(given))
                self.halving.on_trial_add(self, self.trials[-1])
            resumed = self.halving.choose_trial_to_run(self)
            if resumed:
                assert resumed.status == "PAUSED"
                resumed.status = "RUNNING"
            running = [trial for trial in self.trials if trial.status == "RUNNING"]
            self.most = max(self.most, len(running))
            if running:
                self.step(random.choice(running))

    def step(self, trial: TuneTrial) -> None:
        """Train an epoch, or only report if the journal has it: what is in the journal is the checkpoint here."""
        time.sleep(random.random() * EPOCH_SECONDS)
        number, until = trial.config["number"], trial.config["until"]
        known = self.journal.read(number)
        assert known
        if known.failure or number == FAILS:
            self.journal.write(dataclasses.replace(known, failure="TrainingError: the loss is nan at step 7"))
            trial.status = "TERMINATED"
            return
        if known.epochs < until:
            at = known.epochs + 1
            point = Point(epoch=at, scores={"val_top1": top1(known, at), "val_loss": 1.0}, checkpoint="c")
            known = known.with_point(point)
            self.journal.write(known)
            with (self.folder / "trained.log").open("a") as log:
                log.write(f"{number} {at}\n")
        self.told.append((number, known.epochs))
        decision = self.halving.on_trial_result(self, trial, {"epoch": known.epochs})
        trial.status = {"CONTINUE": "RUNNING", "PAUSE": "PAUSED", "STOP": "TERMINATED"}[decision]


def run(folder: Path, max_concurrent: int = 3) -> list[Trial]:
    """The campaign in this process."""
    return ranked(tune(folder, max_concurrent).journal.trials())


def tune(folder: Path, max_concurrent: int = 3) -> FakeTune:
    """The same, and the loop that ran it."""
    journal = Journal(uri=str(folder))
    loop = FakeTune(Ladder(journal, SEARCH, BRACKET, max_concurrent=max_concurrent, say=lambda line: None), folder)
    loop.run()
    return loop


def table(trials: list[Trial]) -> str:
    """One line a trial, with everything that must be the same."""
    return "\n".join(
        f"{t.number} {t.wave} {t.epochs} {t.score} {t.history} {t.failure} {sorted(t.sample.items())}" for t in trials
    )


def killed(folder: Path) -> bool:
    """Run in a process that is killed after a random time, if it is not done by then."""
    child = os.fork()
    if child == 0:
        run(folder)
        os._exit(0)
    time.sleep(random.random() * EPOCH_SECONDS * 10)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def attack(folder: Path, kills: int) -> None:
    """Campaigns one after the other until so many processes were killed; the last one then ends in peace."""
    for campaign in itertools.count():
        place = folder / str(campaign)
        place.mkdir()
        while kills and killed(place):
            kills -= 1
        (place / "table.txt").write_text(table(run(place)))
        if not kills:
            return


if __name__ == "__main__":
    attack(Path(sys.argv[1]), int(sys.argv[2]))
