from __future__ import annotations

import pytest
import torch

from tpn_ray import recipes
from tpn_ray.data.plan import Plan
from tpn_ray.errors import TrainingError
from tpn_ray.training.events import Diverged, Event, NodeLoad, Progress
from tpn_ray.training.goodput import METRIC, PARTS, PEAK, Clock
from tpn_ray.training.log import Log
from tpn_ray.training.step import StepSums, Training

PLAN = Plan(samples=64, seed=0, epochs=2, batch_clips=32, micro_batch_clips=16)


@pytest.fixture
def training() -> Training:
    recipe = recipes.toy()
    return Training(recipe.model, recipe.loss, recipe.optim, recipe.loop, "cpu")


class Seconds:
    """A time that the test sets."""

    now = 0.0

    def mark(self) -> float:
        return self.now

    def seconds(self, begin: float, end: float) -> float:
        return end - begin


def test_progress_is_the_mean_over_all_clips(training: Training) -> None:
    told: list[Event] = []
    time = Seconds()
    clock = Clock(time)
    log = Log(PLAN, clock, told.append)
    for losses, hits in (([3.0, 1.0], 8), ([2.0, 0.0], 24)):
        training.step += 1
        time.now += 100.0  # is no part of a step
        with clock.booking("data"):
            time.now += 0.5
        with clock.booking("compute"):
            time.now += 1.5
        heads, norm = torch.tensor([3.0, 2.0]), torch.tensor(float(hits))
        log.add(StepSums(torch.tensor(losses), torch.tensor(hits), 32, heads, norm))
    log.flush(training, 0)
    (progress,) = told
    assert isinstance(progress, Progress)
    assert (progress.step, progress.loss, progress.top1) == (2, 1.5, 0.5)
    assert progress.clips_per_second == pytest.approx(16.0)
    assert progress.waiting == pytest.approx(0.25)
    (metrics,) = log.take_history()
    assert metrics.values["loss"] == 1.5
    assert (metrics.values["loss_main"], metrics.values["loss_auxiliary_0"]) == (1.5, 1.0)  # of four micro-batches
    assert metrics.values["gradient_norm"] == 16.0
    assert all(metrics.values[METRIC + part] >= 0 for part in PARTS)
    assert metrics.values[PEAK] > 1
    assert log.take_history() == ()


def test_a_node_says_how_busy_it_is_now_and_then(training: Training) -> None:
    told: list[Event] = []
    log = Log(PLAN, Clock(), told.append, "10.0.0.7")
    for training.step in (1, 2):
        log.add(StepSums(torch.tensor([1.0]), torch.tensor(0), 32))
        log.flush(training, 1)
    (load,) = told
    assert isinstance(load, NodeLoad)
    assert (load.node, load.step) == ("10.0.0.7", 1)
    assert load.values["worker_memory_usage_megabytes"] > 1
    assert 0 < load.values["system_memory_usage_percentage"] <= 100


def test_a_loss_that_is_no_number_is_named_by_its_place(training: Training) -> None:
    told: list[Event] = []
    log = Log(PLAN, Clock(), told.append)
    training.step = 7
    log.add(StepSums(torch.tensor([1.0, 1.0]), torch.tensor(0), 32))
    log.add(StepSums(torch.tensor([1.0, float("inf")]), torch.tensor(0), 32))
    with pytest.raises(TrainingError, match="micro-batch 1 of step 6 is inf"):
        log.flush(training, 0)
    assert told == [Diverged(step=6, number=1, loss=float("inf"))]
