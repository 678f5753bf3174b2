"""Train a recipe and score its best checkpoint. `python jobs/train.py toy --data FOLDER`; `--help` shows all flags."""

from __future__ import annotations

from tpn_ray.job import run_job

import dataclasses
import sys

import tyro

from tpn_ray import command_line, recipes, session
from tpn_ray.commands.train import TrainingJob, train

PROGRAM = "python jobs/train.py"


def main() -> None:
    recipe, rest = command_line.take_recipe_name(sys.argv[1:], recipes.described(), PROGRAM)
    default = TrainingJob(data=tyro.MISSING, recipe=recipes.recipe(recipe))
    job = command_line.parse(default, rest, program=f"{PROGRAM} {recipe}", description=f"Train the recipe {recipe}.")
    train(dataclasses.replace(job, name=job.name or command_line.fresh_name(recipe)))


if __name__ == "__main__":
    run_job(main, leave=session.disconnect)
