"""Machines that can never run a recipe are refused before anything waits for them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tpn_ray import recipes
from tpn_ray.errors import ConfigError, ResourceError
from tpn_ray.recipe import replace_fields
from tpn_ray.resources import Decoding, PerWorker
from tpn_ray.training.machines import Machines, check_division, check_feasible, fitted

SPOT, ON_CPU_NODES = PerWorker(resources=("spot=1",)), Decoding(on=("pool=cpu",))


@pytest.mark.parametrize(
    ("machines", "total", "message"),
    [
        (
            Machines(workers=2),
            {"CPU": 2.0},
            r"has 2, and 3 are needed:\n  2 for 2 workers \(--workers 2\) of 1 \(--cpus-per-worker 1\)\n"
            r"  1 for a decoding task \(--decode-cpus 1, at least 1\)\n"
            "Give --workers 1, --cpus-per-worker 0.5, a larger cluster",
        ),
        (
            Machines(workers=1),
            {"CPU": 1.0},
            r"2 are needed:\n  1 for 1 worker [^$]*\nGive a larger cluster, or --may-grow",
        ),
        (
            Machines(per_worker=PerWorker(gpus=1)),
            {"CPU": 9.0, "GPU": 1.0},
            r"too few GPUs: .* has 1, and 2 are needed for 2 workers \(--workers 2\) of 1 \(--gpus-per-worker 1\)",
        ),
        (
            Machines(per_worker=SPOT),
            {"CPU": 9.0, "spot": 1.0},
            "too little of spot: .* need 2",
        ),
        (Machines(decoding=ON_CPU_NODES), {"CPU": 9.0}, "no node has the labels pool=cpu; .*--decode-on"),
    ],
)
def test_what_can_never_start_is_refused(machines: Machines, total: dict[str, float], message: str) -> None:
    with pytest.raises(ResourceError, match=message):
        check_feasible(machines, total, [{}])


ON_GPUS = Machines(workers=0, per_worker=PerWorker(gpus=1))


@pytest.mark.parametrize(
    ("machines", "shares", "total", "workers"),
    [
        (Machines(workers=0), 8, {"CPU": 64.0}, 2),
        (Machines(workers=0), 1, {"CPU": 64.0}, 1),
        (Machines(workers=0), 8, {"CPU": 2.0}, 1),
        (Machines(workers=0), 8, {"CPU": 1.0}, 1),  # and `check_feasible` refuses it
        (Machines(workers=3), 8, {"CPU": 1.0}, 3),
        (ON_GPUS, 8, {"CPU": 64.0, "GPU": 16.0}, 8),
        (ON_GPUS, 8, {"CPU": 64.0, "GPU": 5.0}, 4),  # a fifth would only wait
        (ON_GPUS, 8, {"CPU": 3.0, "GPU": 5.0}, 2),
        (replace(ON_GPUS, decoding=Decoding(may_grow=True)), 8, {"CPU": 0.0}, 2),
        (replace(ON_GPUS, min_workers=4), 8, {"CPU": 64.0, "GPU": 1.0}, 4),
    ],
)
def test_workers_by_default_suit_the_recipe_and_the_cluster(
    machines: Machines, shares: int, total: dict[str, float], workers: int
) -> None:
    recipe = replace_fields(recipes.toy(), {"loop.batch_clips": 16 * shares})
    assert fitted(machines, recipe, total).workers == workers


def test_workers_by_default_share_batch_norm_evenly() -> None:
    recipe = replace_fields(recipes.toy(), {"loop.batch_clips": 16 * 8, "loop.sync_batch_norm": 4})
    for gpus, workers in ((9.0, 8), (7.0, 4), (2.0, 4)):
        assert fitted(ON_GPUS, recipe, {"CPU": 64.0, "GPU": gpus}).workers == workers


def test_workers_that_cannot_share_a_step_are_refused() -> None:
    check_division(Machines(workers=2), recipes.toy())
    with pytest.raises(ResourceError, match="3 workers cannot share the 2 micro-batches"):
        check_division(Machines(workers=3), recipes.toy())


def test_workers_that_cannot_share_batch_norm_are_refused() -> None:
    together = replace_fields(recipes.toy(), {"loop.sync_batch_norm": 2})
    check_division(Machines(workers=2), together)
    with pytest.raises(ResourceError, match="1 workers cannot form groups of 2"):
        check_division(Machines(workers=1), together)
    with pytest.raises(ResourceError, match="--min-workers 1 lets a run have any number"):
        check_division(Machines(workers=2, min_workers=1), together)


def test_what_fits_is_not_refused() -> None:
    check_feasible(Machines(workers=2), {"CPU": 3.0}, [{}])
    check_feasible(Machines(decoding=Decoding(may_grow=True, on=("pool=cpu",))), {"CPU": 1.0}, [])
    placed = Machines(min_workers=1, per_worker=SPOT, decoding=ON_CPU_NODES)
    check_feasible(placed, {"CPU": 3.0, "spot": 1.0}, [{"pool": "gpu"}, {"pool": "cpu"}])


def test_nonsense_machines() -> None:
    with pytest.raises(ConfigError, match="workers=-1"):
        Machines(workers=-1)
    with pytest.raises(ConfigError, match="--workers 0 lets a single run choose"):
        check_division(Machines(workers=0), recipes.toy())
    with pytest.raises(ConfigError, match="min_workers=3"):
        Machines(workers=2, min_workers=3)
    with pytest.raises(ConfigError, match="resize_seconds=0"):
        Machines(resize_seconds=0)
    with pytest.raises(ConfigError, match="collective_minutes=0.5"):
        Machines(collective_minutes=0.5)


def test_scoring_takes_as_much_as_training() -> None:
    machines = Machines(workers=3, per_worker=PerWorker(cpus=0, gpus=1), decoding=ON_CPU_NODES)
    scoring = machines.for_scoring
    assert (scoring.workers, scoring.decoding) == (3, machines.decoding)
    assert scoring.per_worker == PerWorker(cpus=1, gpus=1)


def test_every_setting_is_a_parameter_of_mlflow() -> None:
    machines = Machines(workers=3, per_worker=PerWorker(gpus=1, resources=("spot=1",)), decoding=ON_CPU_NODES)
    named = machines.as_parameters
    assert named["machines.workers"] == "3"
    assert named["machines.gpus_per_worker"] == "1"
    assert named["machines.decode_on"] == "('pool=cpu',)"
    assert len(named) == len(set(named)) >= 12
