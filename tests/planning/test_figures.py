from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tpn_ray.errors import ConfigError
from tpn_ray.planning import figures
from tpn_ray.planning.figures import EFFICIENCY, Hardware, Measured, Preparing, Span, Trials, exactly
from tpn_ray.resources import PerWorker

MEASURED = Measured(
    decode_clips_per_second=Span(80, 100, 125),
    decode_task_bytes=1e9,
    block_bytes=40e6,
    step_clips_per_second=Span(400, 500, 600),
    step_given=False,
    score_clips_per_second=1000,
    worker_bytes=5e9,
    worker_gpu_bytes=20e9,
    train_clips=36_000,
    val_videos=1000,
    train_videos=36_000,
    prepared=False,
    preparing=Preparing(videos=3, speedup=Span(2, 4, 5), bytes_share=0.5, core_seconds_per_video=Span(1, 2, 3)),
)
GPUS = Hardware(
    workers=8,
    per_worker=PerWorker(gpus=1),
    node_cpus=17,
    gpu_node_gpus=4,
    gpu_node_cpus=9,
    price_gpu_hour=3.0,
    price_cpu_hour=0.05,
)


def changed(**fields: Any) -> Measured:
    return dataclasses.replace(MEASURED, **fields)


def test_spans_hold_everything_between() -> None:
    assert Span(4, 6, 8) / Span(1, 2, 4) == (1, 3, 8)
    assert Span(1, 2, 3).times(2) == (2, 4, 6)
    assert Span(1, 2, 3).plus(exactly(1)) == (2, 3, 4)
    assert figures.slower(Span(1, 5, 9), Span(2, 4, 6)) == (1, 4, 6)


def test_cores_for_a_worker() -> None:
    assert figures.cores_per_worker(MEASURED) == (400 / 125, 5, 600 / 80)
    assert figures.after_preparing(MEASURED) == (400 / 125 / 5, 5 / 4, 600 / 80 / 2)
    assert figures.preparing_core_hours(MEASURED) == pytest.approx([37_000 * s / 3600 for s in (1, 2, 3)])


def test_nodes_beside_those_that_train() -> None:
    """8 workers that need 8 cores each; 4 to a node, whose 9 cores leave 9 - 4 - 1 for decoding."""
    nodes = figures.nodes_for(MEASURED, GPUS, 8)
    assert (nodes.training, nodes.spare_cpus, nodes.decode_tasks) == (2, 4, 64)
    assert nodes.decoding == 4  # 56 cores of 16 usable ones each, rounded up
    few = figures.nodes_for(MEASURED, GPUS, 1)
    assert few.decoding == 0
    assert few.decoding_store_bytes == exactly(figures.STORE_FLOOR_BYTES)


def test_memory_of_nodes() -> None:
    nodes = figures.nodes_for(MEASURED, GPUS, 8)
    assert nodes.decoding_store_bytes == (14 * 2 * 80e6, 14 * 2.5 * 80e6, 14 * 3 * 80e6)  # 56 tasks on 4 nodes
    assert nodes.decoding_memory_bytes.high == 14 * 3 * 80e6 + 14 * 1e9 + 2e9
    assert nodes.training_store_bytes == ((4 * 2 + 4 * 3) * 80e6, (4 * 2.5 + 12) * 80e6, (4 * 3 + 12) * 80e6)
    assert nodes.training_memory_bytes.low == (4 * 2 + 12) * 80e6 + 4 * 5e9 + 4 * 1e9 + 2e9


def test_the_slower_of_both_sets_the_speed() -> None:
    plan = figures.advise(MEASURED, GPUS, Trials(), epochs=9, evaluate_every=1)
    assert not plan.decoding_limits
    assert plan.clips_per_second == pytest.approx([400 * 8 * EFFICIENCY.low, 500 * 8 * EFFICIENCY.middle, 600 * 8])
    speed, limits = figures.speed_of(MEASURED, GPUS, figures.nodes_for(MEASURED, GPUS, 2))
    assert limits
    assert speed.middle == 100 * 16


def test_epochs_runs_and_campaigns() -> None:
    plan = figures.advise(MEASURED, GPUS, Trials(samples=9, max_concurrent=3), epochs=9, evaluate_every=2)
    epoch = 36_000 / 3600 + 1000 / 6400 / 2  # scoring 8 x 1000 clips/s, but 64 cores decode 6400
    assert plan.epochs_per_hour.middle == pytest.approx(3600 / epoch)
    assert plan.run.hours.middle == pytest.approx((60 + 9 * epoch) / 3600)
    each = 8 * 3.0 + 4 * 17 * 0.05
    assert plan.run.price.middle == pytest.approx(plan.run.hours.middle * each)
    assert plan.rungs == (1, 3, 9)
    assert plan.campaign.epochs == 9 + 3 * 2 + 6
    held = (13 * 60 + 21 * epoch) / 3600
    assert plan.campaign.hours.middle == pytest.approx(held / 3)
    assert plan.campaign.price.middle == pytest.approx(held * each)
    assert plan.campaign.hours.low < plan.campaign.hours.middle < plan.campaign.hours.high


def test_scoring_that_was_not_measured_is_as_fast_as_training() -> None:
    plan = figures.advise(changed(score_clips_per_second=0.0), GPUS, Trials(), epochs=9, evaluate_every=1)
    assert plan.epochs_per_hour.middle == pytest.approx(3600 / (37_000 / 3600))


def test_training_on_cpus() -> None:
    cpus = Hardware(
        workers=6, per_worker=PerWorker(cpus=2), gpu_node_cpus=8, node_cpus=8, price_cpu_hour=0.1, price_gpu_hour=9
    )
    assert cpus.workers_per_node == 3  # one core is Ray's
    nodes = figures.nodes_for(MEASURED, cpus, 1)
    assert (nodes.training, nodes.spare_cpus, nodes.decoding) == (2, 1, 1)  # 6 cores wanted, 2 are spare
    assert figures.price_per_hour(cpus, nodes) == pytest.approx((2 * 8 + 8) * 0.1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"workers": 0}, "workers=0 must be at least 1"),
        ({"price_gpu_hour": -1}, "price_gpu_hour=-1 must not be negative"),
        ({"node_cpus": 1}, "node_cpus=1: 1 is kept for Ray"),
        ({"per_worker": PerWorker(gpus=2)}, "no worker of 2 GPUs and 1 CPUs fits a node of gpu_node_gpus=1"),
        ({"per_worker": PerWorker(cpus=9)}, "gpu_node_cpus=8"),
    ],
)
def test_hardware_that_cannot_be(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Hardware(**fields)


def test_campaigns_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="samples=0"):
        Trials(samples=0)
    with pytest.raises(ConfigError, match="reduction_factor=1"):
        figures.advise(MEASURED, GPUS, Trials(reduction_factor=1), epochs=9, evaluate_every=1)
