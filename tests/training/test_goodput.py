from __future__ import annotations

import time

import pytest

from tpn_ray.training.goodput import METRIC, PARTS, Clock, Goodput
from tpn_ray.training.record import StepMetrics


def test_a_clock_books_every_second_to_one_part() -> None:
    begun, clock = time.perf_counter(), Clock()
    with clock.booking("compute"):
        time.sleep(0.02)
        with clock.booking("data"):
            time.sleep(0.03)
        time.sleep(0.01)
    booked = clock.take()
    seconds = time.perf_counter() - begun
    assert set(booked) == set(PARTS)
    assert sum(booked.values()) == pytest.approx(seconds, abs=1e-3)
    assert booked["data"] >= 0.03
    assert booked["compute"] >= 0.03
    assert sum(clock.take().values()) < 0.01


def history(compute: float, data: float) -> tuple[StepMetrics, ...]:
    return (StepMetrics(step=1, values={METRIC + "compute": compute, METRIC + "data": data, "loss": 1.0}),)


def test_every_second_of_a_run_with_a_failure_is_booked() -> None:
    goodput = Goodput(begun=100.0)
    goodput.started(110.0, workers=2)
    goodput.committed(history(8.0, 2.0))
    goodput.failed(120.0)  # 20 worker-seconds, of which 10 were committed
    goodput.started(125.0, workers=2)
    goodput.committed(history(5.0, 1.0))
    goodput.finished(129.0)
    assert goodput.restarts == 1
    assert goodput.seconds["start-up"] == 2 * (10 + 5)
    assert goodput.seconds["lost"] == 10
    assert (goodput.seconds["compute"], goodput.seconds["data"], goodput.seconds["other"]) == (13, 3, 2)
    assert goodput.total == 2 * (129 - 100)
    assert goodput.share == pytest.approx(13 / 58)


def test_a_group_whose_end_nobody_saw_is_lost_when_the_next_begins() -> None:
    goodput = Goodput(begun=0.0)
    goodput.started(1.0, workers=1)
    goodput.started(4.0, workers=1)
    goodput.finished(6.0)
    assert (goodput.seconds["lost"], goodput.seconds["other"], goodput.total) == (3, 2, 6)
