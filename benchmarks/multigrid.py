"""Measures what multigrid saves and what it costs in accuracy, against training on full clips. Runs on the driver."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tpn_ray import storage
from tpn_ray.data.plan import Plan
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.errors import ConfigError
from tpn_ray.recipe import Recipe
from tpn_ray.reproduce import table_runs
from tpn_ray.reproduce.outcome import RowOutcome
from tpn_ray.reproduce.row import Table, TableRow
from tpn_ray.training.machines import Machines
from tpn_ray.training.run_plan import make_plan, recipe_for

Cycle = Literal["long", "short", "both"]


@dataclass(frozen=True, kw_only=True)
class MultigridBench:
    """The same recipe without multigrid and with its cycles, paired by seed."""

    data: str
    """Dataset, as jobs/train.py takes it."""

    cycles: tuple[Cycle, ...] = ("long", "short", "both")
    """Cycles to compare with training on full clips."""

    seeds: int = 3
    """Number of seeds for the data order, augmentation, and initial weights."""

    epochs: int = 10
    """Number of epochs without multigrid."""

    stretch: float = 1.5
    """Epochs with multigrid, as a multiple of those without; published: 1.5."""

    workers: int = 1
    """Number of training workers."""

    folder: str = "runs/bench-multigrid"
    """Folder of the runs; the same command resumes there."""

    address: str = ""
    """Ray cluster to join; by default RAY_ADDRESS, otherwise a local Ray."""

    json: str = ""
    """File to write the results to."""

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.epochs < 1:
            raise ConfigError(f"seeds={self.seeds} and epochs={self.epochs} must be at least 1")
        if not self.cycles or len(set(self.cycles)) < len(self.cycles):
            raise ConfigError(f"cycles={self.cycles!r} must be one or more of long, short, and both, each once")
        if self.stretch < 1:
            raise ConfigError(f"stretch={self.stretch:g} must be at least 1")

    @property
    def machines(self) -> Machines:
        """Machines of each run."""
        return Machines(workers=self.workers)

    def table(self, recipe: str) -> Table:
        """Return the runs as rows of a table."""
        longer = round(self.epochs * self.stretch)
        settings = {"off": self.epochs} | dict.fromkeys(self.cycles, longer)
        rows = [
            TableRow(name=cycle, paper="-", toy_base=recipe, toy={"loop.multigrid": cycle, "loop.epochs": epochs})
            for cycle, epochs in settings.items()
        ]
        return Table(title="Multigrid", data=self.data, views="1x1", rows=tuple(rows), toy_shows="")


@dataclass(frozen=True, kw_only=True)
class CycleReport:
    """The result of one cycle, or of training on full clips."""

    steps: int
    clips: float
    """Work of the run in clips of the recipe's frames and pixels; in the paper's words, its clip-frames and pixels."""
    outcome: RowOutcome


@dataclass(frozen=True, kw_only=True)
class MultigridBenchReport:
    """The results by cycle; the first is training on full clips."""

    cycles: dict[str, CycleReport]

    def __str__(self) -> str:
        full, *others = self.cycles.items()
        lines = [f"{full[0]}: top-1 {full[1].outcome.mean:.1%}, {full[1].steps} steps, {full[1].clips:.0f} clips"]
        for name, one in others:
            low, high = one.outcome.gain_interval
            lines.append(
                f"{name}: top-1 {one.outcome.mean:.1%} ({100 * one.outcome.gain:+.1f} points, {100 * low:+.1f} to "
                f"{100 * high:+.1f}; by seed {', '.join(f'{100 * gain:+.1f}' for gain in one.outcome.gains)}), "
                f"{one.steps} steps, {one.clips:.0f} clips' frames and pixels ({full[1].clips / one.clips:.2f} times "
                "fewer)"
            )
        return "\n".join(lines)


def measure_multigrid(recipe: str, bench: MultigridBench, *, say: Callable[[str], None]) -> MultigridBenchReport:
    """Train and score every row with every seed, one after the other."""
    manifest = load_manifest(bench.data)
    table = bench.table(recipe)
    runs = table_runs.Reproduction(
        name="multigrid",
        table=table,
        scale="toy",
        seeds=bench.seeds,
        epochs=0,
        manifest=manifest,
        machines=bench.machines,
        storage_uri=storage.absolute(bench.folder),
    )
    plans = {}
    for row in table.rows:  # before anything is trained, so that a dataset that is too small is refused
        made = recipe_for(row.recipe("toy", 0), manifest)
        plan = make_plan(made, manifest)
        plans[row.name] = plan.steps, computed(plan, made)
    (outcomes,) = table_runs.run(
        runs,
        on_run=lambda name, top1: say(f"{name}  top-1 {statistics.mean(top1.values()):.1%}"),
        on_event=lambda event: None,
    ).values()
    return report(plans, outcomes, bench)


def computed(plan: Plan, recipe: Recipe) -> float:
    """Return the frames times pixels of all training clips, as a number of clips of the recipe's own shape."""
    full, total = recipe.clip.frames * recipe.augment.crop_px**2, 0.0
    for step in range(plan.steps):
        clips, shape = plan.clips(step + 1) - plan.clips(step), plan.shape(step)
        total += clips * (1.0 if shape is None else shape.frames * shape.crop_px**2 / full)
    return total


def report(
    plans: dict[str, tuple[int, float]], outcomes: Sequence[RowOutcome], bench: MultigridBench
) -> MultigridBenchReport:
    """Put work and accuracy together, and write them to the file that was asked for."""
    made = MultigridBenchReport(
        cycles={
            one.name: CycleReport(steps=plans[one.name][0], clips=plans[one.name][1], outcome=one) for one in outcomes
        }
    )
    if bench.json:
        Path(bench.json).write_text(json.dumps(dataclasses.asdict(made), indent=1))
    return made
