from __future__ import annotations

import dataclasses

import pytest

from benchmarks.campaign import CampaignBench, CampaignBenchReport, compared
from tpn_ray.errors import ConfigError, TrainingError
from tpn_ray.tuning.journal import Held, Point, Trial

BENCH = CampaignBench(data="d", max_concurrent=2)


def trial(number: int, epochs: int, top1: float, held: tuple[float, float] = (0.0, 0.0), failure: str = "") -> Trial:
    point = Point(epoch=epochs, scores={"val_top1": top1}, checkpoint="")
    spent = Held(session="one", begin=held[0], started=held[0], end=held[1])
    return Trial(number=number, sample={}, points=(point,), held=(spent,), failure=failure)


def test_promotion_is_measured_against_the_best_of_the_grid() -> None:
    promotion = [trial(1, 9, 0.60, (0.0, 100.0)), trial(0, 3, 0.70, (0.0, 60.0)), trial(2, 1, 0.2, (60.0, 90.0))]
    grid = [trial(number, 9, top1) for number, top1 in enumerate((0.61, 0.60, 0.3))]
    seed = compared(promotion, grid, BENCH)
    assert (seed.promoted, seed.grid, seed.epochs, seed.grid_epochs) == (0.60, 0.61, 13, 27)
    assert seed.behind == pytest.approx(1.0)
    assert seed.idle == pytest.approx(1 - 190 / 200)
    said = str(CampaignBenchReport(settings=3, max_concurrent=2, seeds=(seed, seed)))
    assert "mean of 2 seeds: 1.0 points behind the grid with 48% of its epochs, idle 5%" in said


def test_on_fresh_videos_neither_is_flattered() -> None:
    promotion, grid = [trial(1, 9, 0.60)], [trial(0, 9, 0.64), trial(1, 9, 0.60)]
    seed = dataclasses.replace(compared(promotion, grid, BENCH), fresh=(0.60, 0.605))
    said = str(CampaignBenchReport(settings=2, max_concurrent=2, seeds=(seed, seed)))
    assert "seed 1: promotion 60.0%, grid 64.0% (4.0 points)" in said
    assert said.endswith("; on fresh videos 0.5 points behind")


def test_a_failed_trial_is_no_comparison() -> None:
    with pytest.raises(TrainingError, match="nothing is compared:\n  trial-0001: TrainingError: nan"):
        compared([trial(0, 9, 0.5)], [trial(1, 1, 0.5, failure="TrainingError: nan")], BENCH)


def test_nonsense() -> None:
    with pytest.raises(ConfigError, match="seeds=0"):
        CampaignBench(data="d", seeds=0)
