"""Tune a recipe: lambda, alpha, schedule. `python jobs/tune.py toy --data FOLDER --samples 4`; see `--help`."""

from __future__ import annotations

from tpn_ray.job import run_job

import dataclasses
import shlex
import sys

import tyro

from tpn_ray import command_line, recipes, session
from tpn_ray.commands.tune import TuningJob, tune
from tpn_ray.output import program
from tpn_ray.redaction import redacted

PROGRAM = "python jobs/tune.py"


def main() -> None:
    recipe, rest = command_line.take_recipe_name(sys.argv[1:], recipes.described(), PROGRAM)
    default = TuningJob(data=tyro.MISSING, recipe=recipes.recipe(recipe))
    job = command_line.parse(default, rest, program=f"{PROGRAM} {recipe}", description=f"Search around {recipe}.")

    named = dataclasses.replace(job, name=job.name or command_line.fresh_name(f"{recipe}-tune"))
    command = [program("python"), *PROGRAM.split()[1:], *sys.argv[1:], *([] if job.name else ["--name", named.name])]
    tune(named, recipe_name=recipe, again=redacted(shlex.join(command)))


if __name__ == "__main__":
    run_job(main, leave=session.disconnect)
