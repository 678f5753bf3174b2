"""Plan machines and cost of runs and campaigns from a one-minute measurement. `python jobs/plan.py RECIPE --data D`

`python jobs/plan.py --models` lists the backbones instead, with their costs and what was published of them.
"""

from __future__ import annotations

from tpn_ray.job import run_job

import dataclasses
import json
import shlex
import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from tpn_ray import command_line, recipes, session, storage
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.meter import print_table
from tpn_ray.output import program
from tpn_ray.planning import figures, measurement, model_card, plan_text
from tpn_ray.planning.figures import Hardware, Trials
from tpn_ray.planning.measurement import Measurement
from tpn_ray.recipe import Recipe
from tpn_ray.training.run_plan import recipe_for

PROGRAM = "python jobs/plan.py"
WIDTH = 160
"""Columns of the list of backbones where there is no terminal."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The recipe and the data to measure, and the hardware to plan for."""

    data: str
    """Training data, as for jobs/train.py."""

    address: str = ""
    """Ray cluster to join; if empty, RAY_ADDRESS (set by `ray job submit`), or else a local Ray."""

    json: str = ""
    """File to write the measurements and the advice to."""

    hardware: Annotated[Hardware, tyro.conf.arg(name="")] = field(default_factory=Hardware)
    trials: Annotated[Trials, tyro.conf.arg(name="")] = field(default_factory=Trials)
    how: Annotated[Measurement, tyro.conf.arg(name="")] = field(default_factory=Measurement)
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A list instead of a plan."""

    models: bool = False
    """Whether to list the backbones with their costs and published accuracy."""


def main() -> None:
    if "--models" in sys.argv[1:]:
        command_line.parse(Listing(), sys.argv[1:], program=PROGRAM, description="List the backbones.")
        print_table(model_card.table(), WIDTH)
        return
    name, rest = command_line.take_recipe_name(sys.argv[1:], recipes.described(), PROGRAM)
    default = Arguments(data=tyro.MISSING, recipe=recipes.recipe(name))
    flags = command_line.parse(default, rest, program=f"{PROGRAM} {name}", description=f"Plan runs of {name}.")
    manifest = load_manifest(flags.data)
    recipe, hardware = recipe_for(flags.recipe, manifest), flags.hardware
    session.connect(flags.address, workers_cpus=hardware.per_worker.cpus, decode_cpus=1)
    measured = measurement.measure(recipe, manifest, hardware, flags.how, say=lambda line: print(line, flush=True))
    plan = figures.advise(
        measured,
        hardware,
        flags.trials,
        epochs=recipe.loop.epochs,
        evaluate_every=recipe.loop.evaluate_every_epochs,
    )
    print_table(plan_text.as_table(f"Measured in {measured.seconds:.0f} s", plan_text.measured_rows(measured)))
    print_table(plan_text.as_table("Advice", plan_text.advice_rows(measured, plan, hardware)))
    print("\n".join(plan_text.shards(measured, plan, shlex.quote(flags.data))))
    given = command_line.flags(flags.recipe, recipes.recipe(name))
    chosen = f"{name} --data {shlex.quote(flags.data)} {given}".rstrip()
    python = program("python")
    print(f"  {python} jobs/train.py {chosen} {plan_text.train_flags(hardware, plan)}")
    print(f"  {python} jobs/tune.py {chosen} {plan_text.tune_flags(hardware, flags.trials, plan)}")
    print("\n".join(f"  {line}" for line in plan_text.store_flags(plan)), flush=True)
    if flags.json:
        content = {"measured": dataclasses.asdict(measured), "plan": dataclasses.asdict(plan)}
        storage.write_bytes(storage.absolute(flags.json), (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    run_job(main, leave=session.disconnect)
