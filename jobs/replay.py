"""Train a run again and compare its weights. `python jobs/replay.py runs/NAME`, or with the run's id in MLflow."""

from __future__ import annotations

from tpn_ray.job import run_job

import sys

from rich.table import Table

from tpn_ray import command_line, session
from tpn_ray.commands.replay import ReplayJob, as_rows, replay
from tpn_ray.meter import print_table

PROGRAM = "python jobs/replay.py"
OTHER_WEIGHTS = 1


def main() -> int:
    description = "Train a run again and compare its weights. Status 0: the same bits; 1: other ones."
    found = replay(command_line.parse_new(ReplayJob, sys.argv[1:], program=PROGRAM, description=description))
    table = Table(show_header=False)
    for row in as_rows(found):
        table.add_row(*row)
    print_table(table)
    return 0 if found.equal else OTHER_WEIGHTS


if __name__ == "__main__":
    run_job(main, leave=session.disconnect)
