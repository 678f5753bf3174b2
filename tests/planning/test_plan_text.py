from __future__ import annotations

import dataclasses

from tests.planning.test_figures import GPUS, MEASURED
from tpn_ray.planning import figures, plan_text
from tpn_ray.planning.figures import Span, Trials, exactly
from tpn_ray.resources import PerWorker

PLAN = figures.advise(MEASURED, GPUS, Trials(samples=9, max_concurrent=2), epochs=9, evaluate_every=1)


def test_the_flags_are_those_of_the_jobs() -> None:
    flags = "--workers 8 --gpus-per-worker 1 --cpus-per-worker 1 --decode-tasks 64"
    assert plan_text.train_flags(GPUS, PLAN) == flags
    spot = dataclasses.replace(GPUS, per_worker=PerWorker(resources=("spot=1", "accelerator_type:H100=0.001")))
    assert "--worker-resources spot=1 accelerator_type:H100=0.001 --decode" in plan_text.train_flags(spot, PLAN)
    tune = plan_text.tune_flags(GPUS, Trials(samples=9, max_concurrent=2), PLAN)
    assert tune == f"--samples 9 --rungs 3 --reduction-factor 3 --min-promoted 1 --max-concurrent 2 {flags}"
    assert plan_text.store_flags(PLAN) == [
        "nodes that train:  ray start ... --object-store-memory 1920000000",
        "nodes that decode: ray start ... --object-store-memory 3360000000",
    ]


def test_every_quantity_says_where_it_comes_from() -> None:
    rows = {quantity: (value, source) for quantity, value, source in plan_text.measured_rows(MEASURED)}
    assert rows["decoding, one core"] == ("100 (80 to 125) clips/s", "measured")
    assert rows["left of a step's speed in a run"] == ("0.9 (0.75 to 1)", "assumed")
    given = dataclasses.replace(MEASURED, step_given=True, score_clips_per_second=0.0, worker_bytes=0.0)
    rows = {quantity: (value, source) for quantity, value, source in plan_text.measured_rows(given)}
    assert rows["training step, one worker"][1] == "given"
    assert "scoring, one worker" not in rows


def test_the_advice_names_nodes_and_prices() -> None:
    rows = {quantity: value for quantity, value, _ in plan_text.advice_rows(MEASURED, PLAN, GPUS)}
    assert rows["decoding cores for each GPU"] == "5 (3.2 to 7.5)"
    assert rows["nodes of 17 cores that decode"] == "4, that is 2 for each that trains"
    assert ", price " in rows["a run of 9 epochs"]
    free = dataclasses.replace(GPUS, price_gpu_hour=0.0, price_cpu_hour=0.0)
    assert "price" not in plan_text.taking(PLAN.run, free)


def test_what_preparing_would_bring() -> None:
    gain = "\n".join(plan_text.shards(MEASURED, PLAN, "videos"))
    assert "their clips cost 1/4 (2 to 5 times as fast)" in gain
    assert "python jobs/prepare.py --data videos --out PREPARED" in gain
    assert MEASURED.preparing
    little = dataclasses.replace(MEASURED, preparing=dataclasses.replace(MEASURED.preparing, speedup=exactly(1.0)))
    assert plan_text.shards(little, PLAN, "videos")[-1] == "For these videos, it is hardly worth it."
    assert (
        "prepared: nothing to gain" in plan_text.shards(dataclasses.replace(MEASURED, prepared=True), PLAN, "videos")[0]
    )
    assert "could not be measured" in plan_text.shards(dataclasses.replace(MEASURED, preparing=None), PLAN, "videos")[0]


def test_numbers_are_short() -> None:
    assert plan_text.span(Span(0.1234, 12.34, 1234.5)) == "12.3 (0.123 to 1234)"
    assert plan_text.span(exactly(3)) == "3"
    assert plan_text.sizes(Span(5e8, 1e9, 25e9)) == "1 GB (0.5 GB to 25 GB)"
    assert plan_text.size(4.2e6) == "4.2 MB"
