"""Disturb a run or a campaign repeatedly and show that the result is the same. `python jobs/chaos.py --kills 20`."""

from __future__ import annotations

from tpn_ray.job import run_job

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/ is not part of the package

from tests.chaos import campaigns, kills, outages, twins
from tests.faulty_proxy import OUTAGES, faulty_proxy
from tests.servers import s3_server
from tpn_ray import command_line


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Train the toy recipe on this machine, both undisturbed and under attack."""

    folder: str
    """New or empty folder for videos, runs, and ledgers."""

    what: Literal["run", "campaign", "outage", "twins"] = "run"
    """What to attack. run: kill any process of one run. campaign: kill the driver of a search by successive halving.
    outage: take away the object store of a run (SeaweedFS, from the test extra): refused, 503, or stalled. twins: start
    the command of a run a second time, beside a driver that lives, is frozen, or is killed."""

    kills: int = 20
    """Number of processes to kill with SIGKILL, each at a random moment."""

    seed: int = 0
    """Seed for the moments, the victims, and the kinds of outage."""

    epochs: int = 0
    """Epochs of the run or of each trial. 0: for a run, as many as kills or outages need to hit it; for a trial, 9."""

    samples: int = 27
    """Number of trials of the campaign."""

    outages: int = 20
    """Number of outages of the store."""

    outage_seconds: tuple[float, float] = (30.0, 120.0)
    """Shortest and longest duration of an outage."""

    twins: int = 20
    """Number of times that the command is started a second time."""


def outage(flags: Arguments) -> outages.OutageReport:
    """Attack the object store, with the tests' server and proxy."""
    with tempfile.TemporaryDirectory() as stored, s3_server(Path(stored)) as server, faulty_proxy(server) as door:
        os.environ.update(server.environment)
        return outages.attack(
            flags.folder,
            f"s3://{server.bucket}",
            door,
            kinds=OUTAGES,
            outages=flags.outages,
            seconds=flags.outage_seconds,
            seed=flags.seed,
            epochs=flags.epochs or outages.epochs_for(flags.outages),
        )


def main() -> None:
    default = Arguments(folder="runs/chaos")
    flags = command_line.parse(default, sys.argv[1:], program="python jobs/chaos.py", description=__doc__ or "")
    report: kills.ChaosReport | campaigns.CampaignReport | outages.OutageReport | twins.TwinReport
    if flags.what == "outage":
        report = outage(flags)
    elif flags.what == "twins":
        report = twins.attack(flags.folder, twins=flags.twins, seed=flags.seed, epochs=flags.epochs or twins.EPOCHS)
    elif flags.what == "run":
        epochs = flags.epochs or kills.epochs_for(flags.kills)
        report = kills.attack(flags.folder, kills=flags.kills, seed=flags.seed, epochs=epochs)
    else:
        epochs = flags.epochs or 9
        report = campaigns.attack(
            flags.folder, kills=flags.kills, seed=flags.seed, epochs=epochs, samples=flags.samples
        )
    print(report, flush=True)
    report.check()


if __name__ == "__main__":
    run_job(main, leave=lambda: None)
