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


class Queue:
    """A device that works through what is launched: a mark is reached when the work before it is done."""

    def __init__(self) -> None:
        self.host = self.free = 0.0

    def launch(self, seconds: float) -> None:
        self.free = max(self.host, self.free) + seconds

    def mark(self) -> float:
        return max(self.host, self.free)

    def seconds(self, begin: float, end: float) -> float:
        return end - begin


def test_the_time_of_a_device_is_booked_to_what_it_does_and_not_to_what_launches_it() -> None:
    device = Queue()
    clock = Clock(device)
    for _ in range(2):
        with clock.booking("data"):
            device.host += 3.0  # of which the device still computes in the second round
        with clock.booking("compute"):
            device.host += 0.1
            device.launch(5.0)
    booked = clock.take()
    assert booked["data"] == pytest.approx(3.0)
    assert booked["compute"] == pytest.approx(0.1 + 5.0 + 5.0)
    assert sum(booked.values()) == pytest.approx(device.free)


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
