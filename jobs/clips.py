"""Show what training really sees. `python jobs/clips.py RECIPE --data D --out clips.png` draws augmented clips."""

from __future__ import annotations

from tpn_ray.job import run_job

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from tpn_ray import command_line, recipes, storage
from tpn_ray.data.tasks import ClipSource
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.predict.sheet import Strip, sheet
from tpn_ray.recipe import Recipe
from tpn_ray.training.run_plan import make_plan, recipe_for
from tpn_ray.training.shown import training_clips

PROGRAM = "python jobs/clips.py"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Which clips to draw."""

    data: str
    """Dataset, as for jobs/train.py."""

    out: str = "clips.png"
    """Image file to write, on disk or s3://."""

    clips: int = 12
    """Number of clips to draw, each as a strip of frames."""

    epoch: int = 0
    """Epoch, counted from 0, which determines the order of the videos and every random draw."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]


def main() -> None:
    name, rest = command_line.take_recipe_name(sys.argv[1:], recipes.described(), PROGRAM)
    default = Arguments(data=tyro.MISSING, recipe=recipes.recipe(name))
    flags = command_line.parse(default, rest, program=f"{PROGRAM} {name}", description=f"Clips of the recipe {name}.")
    whole = load_manifest(flags.data)
    recipe = recipe_for(flags.recipe, whole)
    manifest = whole.select("train").showing(recipe.clip.modality)
    source = ClipSource(manifest=manifest, clip=recipe.clip, augment=recipe.augment, seed=recipe.loop.seed)
    shown = training_clips(source, make_plan(recipe, whole), recipe.loss, flags.epoch, flags.clips)
    strips = [Strip(*one) for one in shown]
    storage.write_bytes(storage.absolute(flags.out), sheet(strips))
    print(f"{len(strips)} clips as the recipe {name} sees them in epoch {flags.epoch}: {storage.absolute(flags.out)}")


if __name__ == "__main__":
    run_job(main, leave=lambda: None)
    sys.exit(0)
