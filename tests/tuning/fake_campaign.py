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

from optuna.distributions import FloatDistribution

from tpn_ray import recipes
from tpn_ray.errors import TrainingError
from tpn_ray.tuning.distributions import choice
from tpn_ray.tuning.halving import Search, successive_halving
from tpn_ray.tuning.journal import Journal, Point, Trial
from tpn_ray.tuning.rungs import Bracket
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


def run(folder: Path, max_concurrent: int = 3) -> list[Trial]:
    """The campaign in this process."""
    journal = Journal(uri=str(folder))

    def train(trial: Trial, epoch: int) -> Trial:
        # What is in the journal is the checkpoint here: training goes on behind it.
        known = journal.read(trial.number)
        trial = dataclasses.replace(known, lineage=trial.lineage) if known else trial
        for at in range(trial.epochs + 1, epoch + 1):
            time.sleep(random.random() * EPOCH_SECONDS)
            if trial.number == FAILS:
                raise TrainingError("the loss is nan at step 7")
            scores = {"val_top1": top1(trial, at), "val_loss": 1.0}
            trial = trial.with_point(Point(epoch=at, scores=scores, checkpoint=f"{trial.name}/{at}"))
            journal.write(trial)
            with (folder / "trained.log").open("a") as log:
                log.write(f"{trial.number} {at}\n")
        return trial

    return successive_halving(journal, SEARCH, BRACKET, train=train, max_concurrent=max_concurrent)


def table(trials: list[Trial]) -> str:
    """One line a trial, with everything that must be the same."""
    return "\n".join(
        f"{t.number} {t.wave} {t.epochs} {t.top1} {t.history} {t.failure} {sorted(t.sample.items())}" for t in trials
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
