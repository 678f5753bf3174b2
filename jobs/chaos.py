"""Kill a training run over and over and show that it ends with the same bits. `python jobs/chaos.py --kills 20`."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from tpn_ray import chaos, command_line


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Trains the toy recipe twice on this machine: undisturbed, and under fire."""

    folder: str
    """New or empty folder for videos, runs and ledgers."""

    kills: int = 20
    """Processes to kill with SIGKILL, each at a random moment."""

    seed: int = 0
    """Of the moments and of who is killed."""

    epochs: int = 0
    """Of the run; 0: as many as the kills need to hit it."""


def main() -> None:
    default = Arguments(folder="runs/chaos")
    flags = command_line.parse(default, sys.argv[1:], program="python jobs/chaos.py", description=__doc__ or "")
    report = chaos.attack(
        flags.folder, kills=flags.kills, seed=flags.seed, epochs=flags.epochs or chaos.epochs_for(flags.kills)
    )
    print(report, flush=True)
    report.check()


if __name__ == "__main__":
    command_line.run_job(main, leave=lambda: None)
