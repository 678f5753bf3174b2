"""Policies on stored curves: each trains every epoch once and in order, and none sees what it has not trained."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from benchmarks import policies
from benchmarks.freeze_thaw import Rounds, encoded
from benchmarks.policies import OURS, POLICIES, Grid, PoliciesBench, measure_policies, read_grid
from tpn_ray import recipes
from tpn_ray.errors import ConfigError
from tpn_ray.recipe import replace_fields, to_plain
from tpn_ray.tuning.distributions import parse
from tpn_ray.tuning.journal import Journal, Point, Trial

SPACE = {"model.alpha": "choice((1, 2), (4, 8))", "optim.lr": "choice(0.05, 0.1, 0.2)", "optim.warmup": "choice(0, 1)"}
EPOCHS = 6


def write_grid(folder: Path) -> str:
    """A whole grid of 12 made curves; alpha (4, 8) is behind early and ahead late."""
    journal = Journal(uri=str(folder / "grid"))
    journal.begin({"recipe": to_plain(replace_fields(recipes.toy(), {"loop.epochs": EPOCHS})), "space": SPACE})
    choices = [parse(text).choices for text in SPACE.values()]  # type: ignore[union-attr]
    for number, values in enumerate(itertools.product(*choices)):
        sample = dict(zip(SPACE, values, strict=True))
        late = 0.05 if sample["model.alpha"] == (4, 8) else 0.02
        tops = [0.3 + late * epoch - abs(sample["optim.lr"] - 0.1) + 0.001 * number for epoch in range(EPOCHS)]
        points = (
            Point(epoch=epoch, scores={"val_top1": top}, checkpoint="c") for epoch, top in enumerate(tops, start=1)
        )
        journal.write(Trial(number=number, sample=sample, points=tuple(points)))
    return journal.uri


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return read_grid(write_grid(tmp_path_factory.mktemp("grids")))


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_trains_an_epoch_once_and_in_order(grid: Grid, name: str) -> None:
    trained = list(itertools.islice(POLICIES[name](grid, 18, 3), 18))
    assert trained == list(itertools.islice(POLICIES[name](grid, 18, 3), 18)), "the seed decides"
    assert 0 < len(trained) <= 18
    for one in range(len(grid.samples)):
        epochs = [epoch for number, epoch in trained if number == one]
        assert epochs == list(range(1, len(epochs) + 1))


def test_random_search_and_the_best_checkpoint_so_far(grid: Grid) -> None:
    points = policies.behind(grid, policies.random_search, 8, 0)
    order = np.random.default_rng(0).permutation(12)
    seen = [*grid.tops[order[0]], *grid.tops[order[1], :2]]
    assert points == pytest.approx([100 * (grid.tops.max() - max(seen[: n + 1])) for n in range(8)])


def test_halving_and_asha_go_as_far_as_their_rungs_say(grid: Grid) -> None:
    for policy, expected in ((policies.halving, {1: 8, 2: 2, 6: 2}), (policies.asha, {1: 8, 2: 3, 6: 1})):
        trained = list(policy(grid, 72, 0))
        furthest = [max(epoch for number, epoch in trained if number == one) for one in range(12)]
        assert {epoch: furthest.count(epoch) for epoch in set(furthest)} == expected


def test_freeze_thaw_ends_with_a_whole_trial_and_resumes_from_any_place(grid: Grid) -> None:
    trained = list(policies.freeze_thaw(grid, 18, 0))
    assert len(trained) == 18
    assert max(epoch for _, epoch in trained) == EPOCHS, "what is left completes the best one"
    for place in (1, 7, 12):
        known = [
            [float(grid.tops[one, epoch - 1]) for number, epoch in trained[:place] if number == one]
            for one in range(12)
        ]
        rounds = Rounds(encoded(grid.space, grid.samples), steps=EPOCHS, budget=18, width=2, seed=0)
        assert rounds.due(known)[0] in trained[place : place + 2], "after a kill, the scores so far are all it needs"


def test_a_trial_that_failed_is_not_chosen_again(grid: Grid) -> None:
    rounds = Rounds(encoded(grid.space, grid.samples), steps=EPOCHS, budget=12, width=2, seed=0)
    known = [list[float]() for _ in grid.samples]
    while due := rounds.due(known, failed=(0, 3)):
        assert not {0, 3} & {one for one, _ in due}
        for one, epoch in due:
            known[one].append(float(grid.tops[one, epoch - 1]))
    assert rounds.failed <= {0, 3}


def test_ranges_are_encoded_by_their_logarithm() -> None:
    space = {"optim.lr": parse("loguniform(0.01, 1)"), "clip.frames": parse("whole(4, 8)")}
    assert encoded(space, [{"optim.lr": 0.1, "clip.frames": 8}]).tolist() == [pytest.approx([0.5, 1.0])]


def test_the_report_compares_by_grid(tmp_path: Path) -> None:
    places = (write_grid(tmp_path / "a"), write_grid(tmp_path / "b"))
    bench = PoliciesBench(grids=places, replays=1, picture=str(tmp_path / "curves.png"))
    report = measure_policies(dataclasses.replace(bench, share=0.2))
    assert {points.shape for points in report.points.values()} == {(2, 100)}
    assert report.against("ASHA that pauses")[0] == pytest.approx(report.against("ASHA that pauses")[1]), "equal grids"
    said = str(report)
    assert "with 20% of its epochs, mean of 2 grids" in said
    assert said.count(f"{OURS} is ahead by") == len(POLICIES) - 1
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_grid_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    journal = Journal(uri=write_grid(tmp_path))
    last = journal.trials()[-1]
    journal.write(dataclasses.replace(last, points=last.points[1:]))
    with pytest.raises(ConfigError, match="trial-0011 was not scored after each of 6 epochs"):
        read_grid(journal.uri)
