"""The paper's tables on one's own machines: `python jobs/reproduce.py 6a --data D --scale toy`; `--help` shows all."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro
from rich.console import Console

from tpn_ray import command_line, session, storage
from tpn_ray.clips.manifest import load_manifest
from tpn_ray.reproduce import driver, show, tables
from tpn_ray.train.driver import Machines

PROGRAM = "python jobs/reproduce.py"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Which table, how large, on which machines."""

    table: tyro.conf.Positional[str]
    """2, 3, 4, 5, 6a, 6b, 6c or 6d."""

    data: str
    """toy: what jobs/toy.py makes; full: the paper's dataset, prepared with jobs/prepare.py."""

    scale: tables.Scale = "toy"
    """toy: the toy recipe with each row's change; full: the published recipe."""

    rows: tuple[str, ...] = ()
    """Names of rows, by default all; the first row of the table is always there to compare with."""

    seeds: int = 3
    """Runs of each row."""

    epochs: int = 0
    """Epochs of each run; 0: as its recipe says."""

    storage: str = "runs/reproduce"
    """Where checkpoints and scores go; the same command goes on there."""

    address: str = ""
    """Ray cluster to join; by default RAY_ADDRESS (set by `ray job submit`), else a local Ray."""

    machines: Annotated[Machines, tyro.conf.arg(name="")] = field(default_factory=Machines)


def main() -> None:
    flags = command_line.parse(
        Arguments(table=tyro.MISSING, data=tyro.MISSING),
        sys.argv[1:],
        program=PROGRAM,
        description="A table of the paper as a campaign of runs, printed beside the paper's figures.",
    )
    table, machines = driver.rows_named(tables.table(flags.table), flags.rows), flags.machines
    folder = storage.absolute(flags.storage)
    campaign = driver.Campaign(
        name=f"table{flags.table}-{flags.scale}",
        table=table,
        scale=flags.scale,
        seeds=flags.seeds,
        epochs=flags.epochs,
        manifest=load_manifest(flags.data),
        machines=machines,
        storage_uri=folder,
    )
    storage.check_writable(folder)
    session.connect(
        flags.address, workers_cpus=machines.workers * machines.cpus_per_worker, decode_cpus=machines.decode_cpus
    )
    print(f"table {flags.table}: {len(table.rows)} rows x {flags.seeds} seeds, trained on {flags.data}", flush=True)
    outcomes = driver.run(campaign, on_run=show.finished, on_event=lambda event: None)
    Console(width=120).print(show.as_table(campaign, outcomes))
    print("\n".join(show.remarks(campaign, outcomes)))
    content = json.dumps([dataclasses.asdict(one) for one in outcomes], indent=1)
    storage.write_bytes(storage.join(folder, f"{campaign.name}.json"), content.encode())


if __name__ == "__main__":
    command_line.run_job(main, leave=session.disconnect)
