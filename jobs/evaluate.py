"""Score a checkpoint on a dataset. `python jobs/evaluate.py --checkpoint C --data D`; `--help` shows all flags."""

from __future__ import annotations

from tpn_ray.job import run_job

import sys

import tyro

from tpn_ray import command_line, session
from tpn_ray.commands.evaluate import EvaluationJob, evaluate

PROGRAM = "python jobs/evaluate.py"
DESCRIPTION = "Score every video of a split exactly once, with the same bits for any number of workers."


def main() -> None:
    default = EvaluationJob(checkpoint=tyro.MISSING, data=tyro.MISSING)
    evaluate(command_line.parse(default, sys.argv[1:], program=PROGRAM, description=DESCRIPTION))


if __name__ == "__main__":
    run_job(main, leave=session.disconnect)
