"""Check, re-encode, and shard a dataset. `python jobs/prepare.py --data FOLDER --out FOLDER`; see `--help`."""

from __future__ import annotations

from tpn_ray.job import run_job

import sys

import tyro

from tpn_ray import command_line, session
from tpn_ray.commands.prepare import PreparationJob, prepare_dataset

PROGRAM = "python jobs/prepare.py"
DESCRIPTION = "Check, re-encode, and shard a dataset."


def main() -> None:
    default = PreparationJob(out=tyro.MISSING)
    prepare_dataset(command_line.parse(default, sys.argv[1:], program=PROGRAM, description=DESCRIPTION))


if __name__ == "__main__":
    run_job(main, leave=session.disconnect)
