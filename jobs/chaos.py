"""Disturb a run or a campaign over and over and show that its end is the same. `python jobs/chaos.py --kills 20`."""

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
    """Trains the toy recipe on this machine, undisturbed and under fire."""

    folder: str
    """New or empty folder for videos, runs and ledgers."""

    what: Literal["run", "campaign", "outage", "twins"] = "run"
    """run: any process of one run is killed. campaign: the driver of a search by successive halving is killed. outage:
    the object store of a run (SeaweedFS, of the test extra) goes away: refused, 503 or stalled. twins: the command of a
    run is given a second time, beside a driver that lives, is frozen or is killed."""

    kills: int = 20
    """Processes to kill with SIGKILL, each at a random moment."""

    seed: int = 0
    """Of the moments, of who is killed, and of how the store is away."""

    epochs: int = 0
    """Of the run, or of each trial; 0: for a run as many as kills or outages need to hit it, for a trial 9."""

    samples: int = 27
    """Trials of the campaign."""

    outages: int = 20
    """Times that the store goes away."""

    outage_seconds: tuple[float, float] = (30.0, 120.0)
    """Shortest and longest time that it is away."""

    twins: int = 20
    """Times that the command is given a second time."""


def outage(flags: Arguments) -> outages.OutageReport:
    """The store and the door before it are those of the tests."""
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
