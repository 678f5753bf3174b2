"""Policies on stored curves: each trains every epoch once and in order, and none sees what it has not trained."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks import policies
from benchmarks.curves import Grid, settings
from benchmarks.freeze_thaw import Rounds, encoded
from benchmarks.policies import POLICIES, PoliciesBench
from tpn_ray.errors import ConfigError
from tpn_ray.tuning.distributions import parse

SPACE = {"model.alpha": "choice((1, 2), (4, 8))", "optim.lr": "choice(0.05, 0.1, 0.2)", "optim.warmup": "choice(0, 1)"}
EPOCHS = 6


def made_grid(name: str = "grid") -> Grid:
    """A whole grid of 12 made curves; alpha (4, 8) is behind early and ahead late. Fresh videos say the same."""
    space = {name: parse(text) for name, text in SPACE.items()}
    samples, tops = settings(space), list[list[float]]()
    for number, sample in enumerate(samples):
        late = 0.05 if sample["model.alpha"] == (4, 8) else 0.02
        tops.append([0.3 + late * epoch - abs(sample["optim.lr"] - 0.1) + 0.001 * number for epoch in range(EPOCHS)])
    return Grid(
        name=name,
        space=space,
        samples=samples,
        tops=np.array(tops),
        fresh=lambda places: [tops[one][epoch - 1] for one, epoch in places],
    )


@pytest.fixture(scope="module")
def grid() -> Grid:
    return made_grid()


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_trains_an_epoch_once_and_in_order(grid: Grid, name: str) -> None:
    trained = list(itertools.islice(POLICIES[name](grid, 18, 3), 18))
    assert trained == list(itertools.islice(POLICIES[name](grid, 18, 3), 18)), "the seed decides"
    assert 0 < len(trained) <= 18
    for one in range(len(grid.samples)):
        epochs = [epoch for number, epoch in trained if number == one]
        assert epochs == list(range(1, len(epochs) + 1))


def test_random_search_and_the_best_checkpoint_so_far(grid: Grid) -> None:
    chosen = policies.incumbents(grid, policies.random_search, 8, 0)
    order = np.random.default_rng(0).permutation(12)
    seen = [*grid.tops[order[0]], *grid.tops[order[1], :2]]
    assert [grid.tops[one, epoch - 1] for one, epoch in chosen] == [max(seen[: n + 1]) for n in range(8)]
    one, epoch = policies.best_of(grid)
    assert grid.tops[one, epoch - 1] == grid.tops.max()


def test_of_equal_checkpoints_the_last_is_chosen_and_an_early_end_keeps_it(grid: Grid) -> None:
    even = dataclasses.replace(grid, tops=np.full_like(grid.tops, 0.5))

    def two(grid: Grid, budget: int, seed: int) -> Iterator[tuple[int, int]]:
        return iter([(3, 1), (4, 1)])

    assert policies.incumbents(even, two, 4, 0) == [(3, 1), (4, 1), (4, 1), (4, 1)]
    assert policies.best_of(even)[1] == EPOCHS


def test_halving_and_asha_go_as_far_as_their_rungs_say(grid: Grid) -> None:
    for policy in (policies.halving, policies.asha):
        trained = list(policy(grid, 72, 0))
        furthest = [max(epoch for number, epoch in trained if number == one) for one in range(12)]
        assert {epoch: furthest.count(epoch) for epoch in set(furthest)} == {1: 8, 2: 3, 6: 1}


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


def test_the_report_compares_by_grid(grid: Grid) -> None:
    report = policies.compare([grid, made_grid("another")], share=0.2, replays=1)
    assert {result.curve.shape for result in report.results.values()} == {(2, 100)}
    ours, other = report.results["freeze-thaw"], report.results["ASHA that pauses"]
    assert ours.fresh == pytest.approx(ours.validation), "fresh videos say the same"
    mean, low, high = policies.ahead(ours, other)
    assert low == pytest.approx(mean) == pytest.approx(high), "equal grids"
    assert mean == pytest.approx(other.fresh[0] - ours.fresh[0])
    said = str(report)
    assert "with 20% of its epochs, mean of 2 grids" in said
    assert said.count("; validation") == len(POLICIES)
    assert report.picture().startswith(b"\x89PNG")


@pytest.mark.parametrize(("field", "value"), [("share", 0.0), ("replays", 0), ("seeds", 0), ("epochs", 0)])
def test_what_makes_no_comparison_is_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{field}=0 must be"):
        PoliciesBench(data="d", fresh="f", **{field: value})  # type: ignore[arg-type]
