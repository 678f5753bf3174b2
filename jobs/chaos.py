"""Kill a run or a campaign over and over and show that its end is the same. `python jobs/chaos.py --kills 20`."""

from __future__ import annotations

from tpn_ray.job import run_job

import sys
from dataclasses import dataclass
from typing import Literal

from tpn_ray import chaos, command_line
from tpn_ray.tune import attack


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Trains the toy recipe on this machine, undisturbed and under fire."""

    folder: str
    """New or empty folder for videos, runs and ledgers."""

    what: Literal["run", "campaign"] = "run"
    """run: any process of one run is killed. campaign: the driver of a search by promotion is killed."""

    kills: int = 20
    """Processes to kill with SIGKILL, each at a random moment."""

    seed: int = 0
    """Of the moments and of who is killed."""

    epochs: int = 0
    """Of the run, or of each trial; 0: for a run as many as the kills need to hit it, for a trial 9."""

    samples: int = 27
    """Trials of the campaign."""


def main() -> None:
    default = Arguments(folder="runs/chaos")
    flags = command_line.parse(default, sys.argv[1:], program="python jobs/chaos.py", description=__doc__ or "")
    report: chaos.ChaosReport | attack.CampaignReport
    if flags.what == "run":
        epochs = flags.epochs or chaos.epochs_for(flags.kills)
        report = chaos.attack(flags.folder, kills=flags.kills, seed=flags.seed, epochs=epochs)
    else:
        epochs = flags.epochs or 9
        report = attack.attack(flags.folder, kills=flags.kills, seed=flags.seed, epochs=epochs, samples=flags.samples)
    print(report, flush=True)
    report.check()


if __name__ == "__main__":
    run_job(main, leave=lambda: None)
