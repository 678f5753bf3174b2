from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.multigrid import MultigridBench, computed, report
from tpn_ray.data.plan import Plan
from tpn_ray.errors import ConfigError
from tpn_ray.recipe import Recipe
from tpn_ray.reproduce.outcome import outcome
from tpn_ray.training.multigrid import grid_of

BENCH = MultigridBench(data="d")


def plan(recipe: Recipe, samples: int = 768) -> Plan:
    loop = recipe.loop
    return Plan(
        samples=samples,
        seed=0,
        epochs=loop.epochs,
        batch_clips=loop.batch_clips,
        micro_batch_clips=loop.micro_batch_clips,
        grid=grid_of(recipe),
    )


def test_the_work_of_full_clips_is_their_number() -> None:
    row = BENCH.table("toy").baseline
    recipe = row.recipe("toy", 0)
    assert (row.name, recipe.loop.multigrid, recipe.loop.epochs) == ("off", "off", 10)
    assert computed(plan(recipe), recipe) == 768 * 10


@pytest.mark.parametrize("cycle", ["long", "short", "both"])
def test_the_work_of_small_clips_is_their_share(cycle: str) -> None:
    recipe = BENCH.table("toy").named(cycle).recipe("toy", 0)
    assert (recipe.loop.multigrid, recipe.loop.epochs) == (cycle, 15)
    made = plan(recipe)
    work = computed(made, recipe)
    assert 0 < work < 768 * 15
    # A step's work stays about the same, so the work follows from the number of steps.
    assert work == pytest.approx(made.steps * recipe.loop.batch_clips, rel=0.1)


def test_report(tmp_path: Path) -> None:
    ranks = np.array([[0, 0, 1, 1], [0, 0, 0, 1]])
    better = np.zeros_like(ranks)
    outcomes = [outcome("off", ranks, ranks), outcome("both", better, ranks)]
    bench = MultigridBench(data="d", cycles=("both",), json=str(tmp_path / "report.json"))
    said = str(report({"off": (100, 3200.0), "both": (40, 1280.0)}, outcomes, bench))
    assert said.splitlines()[0] == "off: top-1 62.5%, 100 steps, 3200 clips"
    assert "both: top-1 100.0% (+37.5 points" in said and "by seed +50.0, +25.0)" in said
    assert said.endswith("40 steps, 1280 clips' frames and pixels (2.50 times fewer)")
    assert json.loads((tmp_path / "report.json").read_text())["cycles"]["both"]["outcome"]["gains"] == [0.5, 0.25]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"seeds": 0}, "seeds=0"), ({"cycles": ()}, "cycles="), ({"stretch": 0.5}, r"stretch=0\.5 must be at least 1")],
)
def test_nonsense(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MultigridBench(data="d", **changes)  # type: ignore[arg-type]
