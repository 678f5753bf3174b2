"""Make the toy dataset: H.264 videos whose class is their tempo. `python jobs/toy.py FOLDER`"""

from __future__ import annotations

from tpn_ray.job import run_job

import sys
import time
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from tpn_ray import command_line, storage
from tpn_ray.datasets.toy import TOY_CLASSES, ToyConfig, write_toy
from tpn_ray.datasets.toy_actions import write_actions
from tpn_ray.datasets.toy_kitchen import write_kitchen
from tpn_ray.meter import ProgressMeter
from tpn_ray.output import program


@dataclass(frozen=True)
class Arguments:
    """Where to write the videos, and how many."""

    folder: tyro.conf.Positional[str]
    """Folder or s3://bucket/prefix to write to."""

    kind: Literal["tempo", "actions", "kitchen"] = "tempo"
    """Kind of dataset. tempo: a pulse whose period is the class. actions: something happens once, at its own tempo
    (jobs/tempo.py). kitchen: long videos with verbs (tempos) and nouns (shapes), for jobs/prepare.py --format epic."""

    toy: Annotated[ToyConfig, tyro.conf.arg(name="")] = field(default_factory=ToyConfig)


def main() -> None:
    description = "Make videos whose class is their tempo."
    arguments = command_line.parse_new(Arguments, sys.argv[1:], program="python jobs/toy.py", description=description)
    begin = time.monotonic()
    folder, toy = arguments.folder, arguments.toy
    things, hint = "segments of long videos" if arguments.kind == "kitchen" else "videos", ""
    progress = ProgressMeter(f"{things} made")
    if arguments.kind == "kitchen":
        tables = write_kitchen(folder, toy, progress=progress)
        hint = f"--annotations {' '.join(tables.values())} --videos {storage.join(folder, 'videos')} --out FOLDER"
    elif arguments.kind == "actions":
        write_actions(folder, toy, progress=progress)
    else:
        write_toy(folder, toy, progress=progress)
    made = (toy.train_per_class + toy.val_per_class) * len(TOY_CLASSES)
    print(f"{made} {things} in {storage.absolute(folder)} ({time.monotonic() - begin:.0f} s)")
    if hint:
        print(f"next: {program('python')} jobs/prepare.py --format epic {hint}")


if __name__ == "__main__":
    run_job(main, leave=lambda: None)
    sys.exit(0)
