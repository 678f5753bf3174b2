"""Reproduce the paper's tables on your own machines. `python jobs/reproduce.py 6a --data D --scale toy`; see --help."""

from __future__ import annotations

from tpn_ray.job import goes_on, run_job

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from tpn_ray import command_line, session, storage
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.datasets.toy_actions import known_tempos
from tpn_ray.errors import ConfigError
from tpn_ray.meter import print_table
from tpn_ray.reproduce import table_runs, table_text, tables
from tpn_ray.reproduce.row import Scale
from tpn_ray.storage import PATIENCE_SECONDS
from tpn_ray.tempo import scoring as tempo
from tpn_ray.training.machines import Machines

PROGRAM = "python jobs/reproduce.py"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Which table to reproduce, at which scale, and on which machines."""

    table: tyro.conf.Positional[str]
    """Table or figure: 2, 3, 4, 5, 6a, 6b, 6c, 6d, backbones, figure1, figure4, or figure5."""

    data: str
    """Dataset. toy: the output of jobs/toy.py; for figures use --kind actions, and for table 5 use --kind kitchen and
    prepare it. full: the paper's dataset, prepared with jobs/prepare.py."""

    scale: Scale = "toy"
    """Scale. toy: the toy recipe with each row's change; full: the published recipe."""

    rows: tuple[str, ...] = ()
    """Names of the rows to run; if empty, all that the scale has, those with flow only if the data has flow. What
    they are compared with is always included."""

    seeds: int = 3
    """Number of runs of each row."""

    epochs: int = 0
    """Epochs of each run; 0: the recipe's number."""

    storage: str = "runs/reproduce"
    """Where checkpoints and scores go. The same command resumes there."""

    address: str = ""
    """Ray cluster to join; if empty, RAY_ADDRESS (set by `ray job submit`), or else a local Ray."""

    storage_seconds: float = PATIENCE_SECONDS
    """Longest wait for storage that does not answer or refuses (503) while the job runs; at startup it is 10 s."""

    machines: Annotated[Machines, tyro.conf.arg(name="")] = field(default_factory=Machines)


def main() -> None:
    flags = command_line.parse(
        Arguments(table=tyro.MISSING, data=tyro.MISSING),
        sys.argv[1:],
        program=PROGRAM,
        description="Reproduce a table of the paper as a campaign of runs, and print it beside the paper's numbers.",
    )
    is_figure, machines = flags.table in tables.FIGURES, flags.machines
    if is_figure and flags.rows:
        raise ConfigError(f"{flags.table} needs all its networks: leave out --rows")
    manifest = load_manifest(flags.data)
    table = tables.table(flags.table)
    if not is_figure:
        table = table_runs.rows_named(table, flags.rows, flags.scale, flow=manifest.has_flow)
    folder = storage.absolute(flags.storage)
    campaign = table_runs.Reproduction(
        name=f"{'' if is_figure else 'table'}{flags.table}-{flags.scale}",
        table=table,
        scale=flags.scale,
        seeds=flags.seeds,
        epochs=flags.epochs,
        manifest=manifest,
        machines=machines,
        storage_uri=folder,
    )
    storage.check_writable(folder)
    goes_on()
    session.connect(
        flags.address,
        workers_cpus=machines.workers * machines.per_worker.cpus,
        decode_cpus=machines.decoding.cpus,
        storage_seconds=flags.storage_seconds,
    )
    seeds = f"{flags.seeds} seed{'s' * (flags.seeds != 1)}"
    print(f"{table.title}: {len(table.rows)} rows x {seeds}, trained on {flags.data}", flush=True)
    out = storage.join(folder, campaign.name)
    if is_figure:
        draw(campaign, flags.data, out)
    else:
        tabulate(campaign, out)


def tabulate(campaign: table_runs.Reproduction, out: str) -> None:
    """Train, score, and print the table. `out`.json holds the numbers."""
    outcomes = table_runs.run(campaign, on_run=table_text.finished, on_event=lambda event: None)
    for grid in table_text.as_tables(campaign, outcomes):
        print_table(grid)
    print("\n".join(table_text.remarks(campaign, outcomes)))
    plain = {name: [dataclasses.asdict(one) for one in rows] for name, rows in outcomes.items()}
    storage.write_bytes(f"{out}.json", json.dumps(plain, indent=1).encode())


def draw(campaign: table_runs.Reproduction, data: str, out: str) -> None:
    """Train the networks of a figure and analyze them into the folder `out`, as jobs/tempo.py does."""
    found = table_runs.checkpoints(campaign, table_text.trained, on_event=lambda event: None)
    stride = campaign.recipe(campaign.table.rows[-1], 0).clip.stride_frames
    question = tempo.TempoQuestion(
        frames=found[tables.FRAMES.name][0] if tables.FRAMES.name in found else "",
        first=found.get(tables.BACKBONE.name, ()),
        second=found.get(tables.TPN.name, ()),
        strides=table_text.played(stride) if tables.FRAMES.name not in found else (),
    )
    videos = campaign.manifest.select("val")
    tempos, report = tempo.analyse(question, videos, known_tempos(data), campaign.machines.for_scoring)
    tempo.write(out, tempos, report)
    print(
        "\n".join([*report.lines(), *table_text.caveats(campaign), f"report, figures, and numbers in {out}"]),
        flush=True,
    )


if __name__ == "__main__":
    run_job(main, leave=session.disconnect)
