"""Measure speed. `python jobs/bench.py step --batch 8 --size 224`; `--help` shows the subcommands and their flags."""

from __future__ import annotations

import sys
from typing import Annotated

import tyro

from tpn_ray import command_line
from tpn_ray.model.bench import StepBench, measure_step


def step(bench: Annotated[StepBench, tyro.conf.arg(name="")]) -> None:
    """A training step and inference: clips/s of this package's network and of the plain formulation, in turns."""
    print(measure_step(bench))


SUBCOMMANDS = {"step": step}


def main() -> None:
    tyro.extras.subcommand_cli_from_dict(SUBCOMMANDS, prog="python jobs/bench.py", description="Measure speed.")


if __name__ == "__main__":
    command_line.run_job(main, leave=lambda: None)
    sys.exit(0)
