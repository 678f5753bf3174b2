from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks.train import TrainBench, check_same, checkpoint_seconds, compare, speed, waiting, without_ray
from tpn_ray import recipes
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.errors import ConfigError, TrainingError
from tpn_ray.recipe import replace_fields
from tpn_ray.training.run_plan import recipe_for


def stretch(step: int, loss: float, clips_per_second: float, waited: float) -> dict[str, float]:
    return {"step": step, "loss": loss, "clips_per_second": clips_per_second, "waiting_for_data": waited}


def test_speed_is_that_of_all_stretches_but_the_first() -> None:
    measured = [stretch(1, 1.0, 1.0, 1.0), stretch(2, 1.0, 10.0, 0.0), stretch(3, 1.0, 40.0, 0.5)]
    assert speed(measured) == pytest.approx(16.0)  # 1 + 1 clips in 0.1 + 0.025 seconds
    assert waiting(measured) == pytest.approx(0.1)
    assert speed(measured[:1]) == 1.0


def test_rounds_are_compared_in_pairs() -> None:
    fast, slow = [stretch(1, 1.0, 20.0, 0.0)], [stretch(1, 1.0, 10.0, 0.0)]
    report = compare([(fast, slow), (slow, slow), (fast, fast)])
    assert (report.ray_over_plain, report.spread) == (1.0, (1.0, 2.0))
    assert "1.00 times as fast (1.00-2.00)" in str(report)


def test_sides_that_computed_something_else_are_refused() -> None:
    check_same([stretch(1, 0.5, 1.0, 0.0)], [stretch(1, 0.5, 2.0, 0.0)])
    with pytest.raises(TrainingError, match="loss 0.5 at step 1 with Ray, 0.25 at step 1"):
        check_same([stretch(1, 0.5, 1.0, 0.0)], [stretch(1, 0.25, 1.0, 0.0)])


def test_what_a_checkpoint_makes_a_step_wait() -> None:
    seconds = checkpoint_seconds(recipes.toy(), TrainBench(data="d"))
    assert seconds > 0
    slow = [stretch(1, 1.0, 10.0, 0.0)]
    report = dataclasses.replace(compare([(slow, slow)]), checkpoint_seconds=0.3)
    assert "a checkpoint makes a step wait 300 ms: 0.100% of the 300 s between two" in str(report)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError, match="rounds=0"):
        TrainBench(data="d", rounds=0)


@pytest.mark.long
def test_a_plain_run_trains_every_step(toy_folder: Path, tmp_path: Path) -> None:
    fields = {"loop.epochs": 1, "loop.batch_clips": 8, "loop.micro_batch_clips": 4, "loop.log_every_steps": 2}
    recipe = recipe_for(replace_fields(recipes.toy(), fields), load_manifest(str(toy_folder)))
    measured = without_ray(recipe, TrainBench(data=str(toy_folder), workers=1), tmp_path)
    assert [row["step"] for row in measured] == [2, 4]
    assert all(row["clips_per_second"] > 0 and row["loss"] > 0 for row in measured)
