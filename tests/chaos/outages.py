"""A training run whose object store goes away again and again: it must lose no worker and end as if nothing happened.

The run is what a user starts: `python jobs/train.py` with its own Ray instance and every relevant default, reading and
writing a store behind a door that can be shut. Runs on one machine.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tests.chaos import kills
from tests.chaos.kills import Outcome, Run
from tpn_ray import storage
from tpn_ray.datasets.toy import write_toy
from tpn_ray.errors import TrainingError

EVALUATION_STEPS = 16
FIELDS = {**kills.FIELDS, "loop.evaluate_every_epochs": EVALUATION_STEPS // 4}
STARTED = "; run "
"""Start of what a job prints once its checks are over; before that, unavailable storage is an error."""
LONGEST_START_SECONDS, LONGEST_PAUSE_SECONDS = 15.0, 2.0
LOOK_SECONDS = 0.2


class Door(Protocol):
    """A switchable gateway in front of a store."""

    url: str

    def go_away(self, outage: str) -> None:
        """Make the store unreachable in one of the ways that the door knows by name."""

    def come_back(self) -> None:
        """Make the store reachable again."""


@dataclass(frozen=True, kw_only=True)
class OutageReport:
    """When the store was unavailable, and how it affected the run."""

    outages: dict[str, int]
    """"how at moment" -> times."""
    away_seconds: float
    outcome: Outcome

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {times}" for kind, times in sorted(self.outages.items()))
        return (
            f"{sum(self.outages.values())} outages with seed {self.outcome.seed} ({kinds}), together "
            f"{self.away_seconds:.0f} s, over {self.outcome}\nwithout the outages the ratio is "
            f"{self.outcome.undisturbed_seconds / (self.outcome.seconds - self.away_seconds):.2f}"
        )

    def check(self) -> None:
        """Raise TrainingError if a worker was lost, or the run did not end like the undisturbed one."""
        lost = self.outcome.starts - 1
        self.outcome.check(*[f"{lost} group(s) of workers were lost"] * (lost > 0))


def epochs_for(outages: int) -> int:
    """Return the number of epochs, of four steps, that keep the run going for this many outages."""
    return 8 + 4 * outages


def attack(
    folder: str,
    bucket_uri: str,
    door: Door,
    *,
    kinds: Sequence[str],
    outages: int,
    seconds: tuple[float, float],
    seed: int,
    epochs: int,
) -> OutageReport:
    """Train undisturbed and with a store that goes away for `seconds` (from, to) each time, and compare.

    This process's variables lead to the store itself, and the run's to the door. Raises TrainingError if the run stops
    or hangs.
    """
    here = kills.empty_folder(folder)
    videos = storage.join(bucket_uri, "videos")
    write_toy(videos, kills.TOY)

    def run(name: str) -> Run:
        return Run(
            here,
            name,
            videos,
            epochs,
            storage_uri=storage.join(bucket_uri, "runs"),
            fields=FIELDS,
            flags=("--tracking-uri", f"sqlite:///{here.absolute()}/mlflow.db"),
            environment={"AWS_ENDPOINT_URL": door.url},
        )

    plain = run("undisturbed")
    plain.finish()
    fire, choice = run("in-outages"), random.Random(seed)
    happened, away = Counter[str](), 0.0
    moments = ["start", *(choice.choice(["step", "checkpoint", "evaluation"]) for _ in range(outages - 2)), "end"]
    for number, moment in enumerate(moments[:outages], 1):
        _wait_for(moment, fire, choice, f"{number - 1} of {outages} outages")
        kind, length = choice.choice(list(kinds)), choice.uniform(*seconds)
        print(f"outage {number}: {kind} for {length:.0f} s at {moment}; step {fire.step} is committed", flush=True)
        door.go_away(kind)
        begun = time.monotonic()
        while time.monotonic() - begun < length and fire.job.keep_running():
            time.sleep(LOOK_SECONDS)
        door.come_back()
        away += time.monotonic() - begun
        happened[f"{kind} at {moment}"] += 1
    fire.finish()
    return OutageReport(outages=dict(happened), away_seconds=away, outcome=kills.compare(plain, fire, seed))


def _wait_for(moment: str, run: Run, choice: random.Random, so_far: str) -> None:
    """Wait until just before or just after what the moment is named for."""
    if moment == "start":
        _until(lambda: STARTED in run.job.log.read_text(errors="replace"), run, so_far)
        time.sleep(choice.uniform(0.0, LONGEST_START_SECONDS))
        return
    step = run.step
    target = {
        "step": step + choice.randrange(1, EVALUATION_STEPS),
        "checkpoint": step + kills.CHECKPOINT_STEPS,
        "evaluation": (step // EVALUATION_STEPS + 1) * EVALUATION_STEPS - kills.CHECKPOINT_STEPS + 1,
        "end": 4 * run.epochs - kills.CHECKPOINT_STEPS,
    }[moment]
    _until(lambda: run.step >= target, run, so_far)
    time.sleep(choice.uniform(0.0, 0.2 if moment == "checkpoint" else LONGEST_PAUSE_SECONDS))


def _until(come: Callable[[], bool], run: Run, so_far: str) -> None:
    deadline = time.monotonic() + kills.RUN_SECONDS
    while run.job.keep_running():
        if come():
            return
        if time.monotonic() > deadline:
            run.job.kill()
            raise TrainingError(f"the run stood still for {kills.RUN_SECONDS:g} s after {so_far}; see {run.job.log}")
        time.sleep(LOOK_SECONDS)
    raise TrainingError(f"the run was over after {so_far}; give more --epochs")
