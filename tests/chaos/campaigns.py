"""A campaign under fire: its driver is killed at random, and its table must equal that of an undisturbed campaign.

The campaign is what a user starts: `python jobs/tune.py` with its own Ray instance, which dies with its driver. Runs on
one machine.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.job_process import JobProcess
from tpn_ray import storage
from tpn_ray.datasets.toy import ToyConfig, write_toy
from tpn_ray.errors import ConfigError, TrainingError
from tpn_ray.training import run_folder
from tpn_ray.tuning.journal import Journal, Trial
from tpn_ray.tuning.rungs import ranked

FIELDS = {"loop.batch_clips": 8, "loop.micro_batch_clips": 8, "loop.evaluate_every_epochs": 1}
SPACE = "lambda_alpha+schedule"
LONGEST_SECONDS = 40.0
"""Half of the kills come at a random time up to this long after the driver's start."""
AFTER_SECONDS = 3.0
"""The other half, and those that would come later than that, come up to this long after a further evaluation."""
LAST_STRIKE = 0.9
"""Share of the campaign's evaluations over which the kills are spread."""
STUCK_SECONDS = 300.0
"""Longest time without a new evaluation; after that the campaign counts as hanging, and the attack fails."""


@dataclass(frozen=True, kw_only=True)
class CampaignReport:
    """What happened, and how it affected the table."""

    seed: int
    kills: int
    trials: int
    epochs: int
    seconds: float
    undisturbed_seconds: float
    different: tuple[str, ...]
    """Rows that differ from those of the undisturbed campaign, with every score of every epoch."""
    repeated: tuple[str, ...]
    """Steps that are recorded twice, and epochs that were measured again."""

    def __str__(self) -> str:
        return (
            f"{self.kills} kills of the driver with seed {self.seed} over {self.epochs} epochs of {self.trials} trials "
            f"in {self.seconds:.0f} s; undisturbed {self.undisturbed_seconds:.0f} s, so an effective training time "
            f"ratio of {self.undisturbed_seconds / self.seconds:.2f}\n"
            f"table:  {'the undisturbed one' if not self.different else 'DIFFERENT: ' + '; '.join(self.different)}\n"
            f"record: {'every step once' if not self.repeated else 'NOT ONCE: ' + '; '.join(self.repeated)}"
        )

    def check(self) -> None:
        """Raise TrainingError if the table differs."""
        faults = [*self.different, *self.repeated]
        if faults:
            raise TrainingError(f"the campaign did not survive, seed {self.seed}:\n  " + "\n  ".join(faults[:20]))


def attack(folder: str, *, kills: int, seed: int, epochs: int, samples: int) -> CampaignReport:
    """Run a campaign undisturbed and under fire, and compare. Raises TrainingError if it stops for good or hangs."""
    here = Path(folder)
    if here.exists() and any(here.iterdir()):
        raise ConfigError(f"--folder {folder} is not empty")
    videos = here / "videos"
    write_toy(str(videos), ToyConfig(train_per_class=4, val_per_class=2))
    begun = time.monotonic()
    _to_its_end(_job(here, "undisturbed", videos, epochs, samples), here / "undisturbed")
    undisturbed_seconds = time.monotonic() - begun
    job, choice, begun = _job(here, "under-fire", videos, epochs, samples), random.Random(seed), time.monotonic()
    done, kept = 0, dict[tuple[int, int], float]()
    last = int(LAST_STRIKE * len(_losses(here / "undisturbed")))
    places = sorted(choice.randint(0, last) for _ in range(kills))
    while done < kills:
        if not _wait_for_strike(job, here / "under-fire", choice, places[done]):
            raise TrainingError(f"the campaign was over after {done} of {kills} kills; give more --samples or --epochs")
        done += job.kill()
        kept |= _losses(here / "under-fire")
        print(f"kill {done}: {len(kept)} epochs of trials are measured", flush=True)
    _to_its_end(job, here / "under-fire")
    one, other = _trials(here / "undisturbed"), _trials(here / "under-fire")
    after = _losses(here / "under-fire")
    anew = [f"trial {trial} epoch {epoch}" for (trial, epoch), loss in kept.items() if after[trial, epoch] != loss]
    return CampaignReport(
        seed=seed,
        kills=done,
        trials=len(other),
        epochs=sum(trial.epochs for trial in other),
        seconds=time.monotonic() - begun,
        undisturbed_seconds=undisturbed_seconds,
        different=tuple(f"{a} is now {b}" for a, b in zip(_table(one), _table(other), strict=True) if a != b),
        repeated=(*_steps_twice(here / "under-fire", other), *anew),
    )


def _wait_for_strike(job: JobProcess, folder: Path, choice: random.Random, place: int) -> bool:
    """Wait for the moment of the next kill, and return False if the campaign is over.

    The moment is soon after a start of the driver, or once `place` evaluations are measured, and one more than now.
    """
    at_most = choice.uniform(0.0, LONGEST_SECONDS) if choice.random() < 0.5 else STUCK_SECONDS
    measured, begun = len(_losses(folder)), time.monotonic()
    while job.keep_running() and time.monotonic() - begun < at_most:
        if len(_losses(folder)) > max(measured, place - 1):
            time.sleep(choice.uniform(0.0, AFTER_SECONDS))
            break
        time.sleep(0.1)
    return job.keep_running()


def _job(here: Path, name: str, videos: Path, epochs: int, samples: int) -> JobProcess:
    command = ["jobs/tune.py", "toy", "--data", str(videos), "--storage", str(here.absolute()), "--name", name]
    command += ["--space", SPACE, "--samples", str(samples), "--max-concurrent", "2"]
    for field, value in {**FIELDS, "loop.epochs": epochs}.items():
        command += [f"--{field.replace('_', '-')}", str(value)]
    return JobProcess(command, here / f"{name}.log")


def _to_its_end(job: JobProcess, folder: Path) -> None:
    measured, since = 0, time.monotonic()
    while job.keep_running():
        if len(_losses(folder)) != measured:
            measured, since = len(_losses(folder)), time.monotonic()
        if time.monotonic() - since > STUCK_SECONDS:
            job.kill()
            raise TrainingError(f"no trial was evaluated for {STUCK_SECONDS:g} s; see {job.log}")
        time.sleep(0.5)


def _trials(folder: Path) -> list[Trial]:
    return Journal(uri=str(folder)).trials()


def _losses(folder: Path) -> dict[tuple[int, int], float]:
    """Map (trial, epoch) to its loss on the validation videos."""
    return {
        (trial.number, point.epoch): point.scores["val_loss"] for trial in _trials(folder) for point in trial.points
    }


def _table(trials: list[Trial]) -> list[str]:
    """Format the rows of the leaderboard, with everything that must be the same."""
    return [
        f"{trial.name}: {trial.failure or trial.history} {[(p.epoch, sorted(p.scores.items())) for p in trial.points]} "
        f"{sorted(trial.sample.items())}"
        for trial in ranked(trials)
    ]


def _steps_twice(folder: Path, trials: list[Trial]) -> list[str]:
    found = []
    for trial in trials:
        records = run_folder.read_records(storage.join(str(folder), trial.name))
        steps = [metrics.step for record in records for metrics in record.history]
        if len(steps) != len(set(steps)):
            found.append(f"{trial.name}: {sorted({step for step in steps if steps.count(step) > 1})}")
    return found
