from __future__ import annotations

import pytest

from tpn_ray import recipes
from tpn_ray.errors import ConfigError, ResourceError
from tpn_ray.planning.figures import Hardware
from tpn_ray.planning.measurement import Measurement, check_possible
from tpn_ray.resources import PerWorker

RECIPE = recipes.k400_r50_8x8()


def test_what_a_cluster_can_measure() -> None:
    check_possible(RECIPE, Hardware(), Measurement(), {"CPU": 1})
    check_possible(RECIPE, Hardware(per_worker=PerWorker(gpus=1)), Measurement(), {"CPU": 1, "GPU": 1})
    check_possible(RECIPE, Hardware(per_worker=PerWorker(gpus=1)), Measurement(step_clips_per_second=300), {"CPU": 1})


def test_what_it_cannot() -> None:
    with pytest.raises(ResourceError, match="the cluster has 0; add a node with GPUs, or give --step-clips-per-second"):
        check_possible(RECIPE, Hardware(per_worker=PerWorker(gpus=1)), Measurement(), {"CPU": 4})
    with pytest.raises(ResourceError, match="a task of 4 CPUs, the cluster has 2"):
        check_possible(RECIPE, Hardware(per_worker=PerWorker(cpus=4)), Measurement(), {"CPU": 2})
    with pytest.raises(ResourceError, match="a task of 1 CPUs, the cluster has 0"):
        check_possible(RECIPE, Hardware(per_worker=PerWorker(cpus=4)), Measurement(step_clips_per_second=300), {})


def test_more_workers_than_a_step_can_feed() -> None:
    with pytest.raises(ConfigError, match="8 workers cannot share the 2 micro-batches of a step: plan at most 2"):
        check_possible(recipes.toy(), Hardware(workers=8, gpu_node_cpus=16), Measurement(), {"CPU": 16})


def test_measurements_that_cannot_be() -> None:
    for fields, words in (({"seconds": 0}, "seconds=0"), ({"step_clips_per_second": -1}, "must not be negative")):
        with pytest.raises(ConfigError, match=words):
            Measurement(**fields)
