"""Ray's own autoscaler, asked without a cluster: does it read these manifests, and would it start the right nodes?

Its parts are called as its process in the head's pod calls them: the RayCluster becomes its configuration, the pending
requests of a job become launches. What is pending is what Ray Train and Ray Data ask for, by the job's flags.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler.v2.event_logger import AutoscalerEventLogger
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.core.generated.autoscaler_pb2 import GangResourceRequest, ResourceRequest, ResourceRequestByCount

from tests.cluster import job_flags, rules
from tests.cluster.capacity import Demand
from tests.cluster.manifests import ROOT, cluster_specs, command, of_kind, rendered


class _NoEvents(AutoscalerEventLogger):  # type: ignore[misc]  # Ray's classes are untyped here
    def __init__(self) -> None: ...

    def log_cluster_scheduling_update(self, *arguments: Any, **keywords: Any) -> None: ...


def configuration(spec: dict[str, Any]) -> AutoscalingConfig:
    """What the autoscaler in the head's pod makes of its RayCluster."""
    resource = {"metadata": {"name": "tpn-ray", "namespace": "tpn-ray"}, "spec": copy.deepcopy(spec)}
    return AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(resource), skip_content_hash=True)


def on_aws() -> AutoscalingConfig:
    with (ROOT / "cluster" / "aws.yaml").open() as file:
        return AutoscalingConfig(prepare_config(yaml.safe_load(file)), skip_content_hash=True)


def launches(config: AutoscalingConfig, demand: Demand, trials: int = 1) -> tuple[dict[str, int], int]:
    """How many nodes of each kind it starts from nothing, and how many requests it can never serve."""
    worker = {"CPU": demand.cpus_per_worker, "GPU": demand.gpus_per_worker}
    bundles = [ResourceRequest(resources_bundle=worker)] * (demand.workers // trials)
    decoder = ResourceRequest(resources_bundle={"CPU": demand.decode_cpus})
    reply = ResourceDemandScheduler(_NoEvents()).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            gang_resource_requests=[GangResourceRequest(requests=bundles)] * (trials if bundles else 0),
            resource_requests=[ResourceRequestByCount(request=decoder, count=demand.decoders)],
        )
    )
    infeasible = len(reply.infeasible_gang_resource_requests) + len(reply.infeasible_resource_requests)
    return {launch.instance_type: launch.count for launch in reply.to_launch}, infeasible


def job(folder: str) -> tuple[dict[str, Any], Any]:
    """The cluster and the flags of a job."""
    documents = rendered(folder)
    (spec,) = cluster_specs(documents)
    return spec, job_flags.parse(*command(of_kind(documents, "RayJob")[0]["spec"]["entrypoint"]))


EXPECTED = {
    "prepare": {"cpu": 1},
    "train": {"gpu": 2},  # what its workers leave of the machines decodes
    "tune": {"gpu": 4},
    "evaluate": {"gpu": 1},
}


@pytest.mark.parametrize("folder", EXPECTED)
def test_the_nodes_of_a_job_come_from_nothing(folder: str) -> None:
    spec, flags = job(folder)
    trials = flags.how.max_concurrent if hasattr(flags, "how") else 1
    assert launches(configuration(spec), rules.demand(flags), trials) == (EXPECTED[folder], 0)


def test_the_standing_cluster_and_aws_serve_every_job() -> None:
    (spec,) = cluster_specs(rendered("cluster"))
    for config in (configuration(spec), on_aws()):
        for folder, nodes in EXPECTED.items():
            _, flags = job(folder)
            trials = flags.how.max_concurrent if hasattr(flags, "how") else 1
            assert launches(config, rules.demand(flags), trials) == (nodes, 0)


def test_our_arithmetic_agrees_with_rays() -> None:
    """On a group that is too small as well: what we refuse, the autoscaler cannot serve."""
    spec, flags = job("train")
    spec["workerGroupSpecs"][1]["maxReplicas"] = 1
    demand = rules.demand(flags)
    assert rules.problem(demand, rules.node_groups(spec))
    assert launches(configuration(spec), demand)[1] == 1


def test_decoders_come_on_nodes_without_gpus() -> None:
    """More tasks than the nodes of the moment hold bring CPU nodes, up to their number."""
    (spec,) = cluster_specs(rendered("cluster"))
    assert launches(configuration(spec), Demand(decoders=90)) == ({"cpu": 3}, 0)


def test_limits_reach_the_autoscaler() -> None:
    (spec,) = cluster_specs(rendered("cluster"))
    kubernetes, aws = configuration(spec).get_node_type_configs(), on_aws().get_node_type_configs()
    for name, nodes in (("cpu", 4), ("gpu", 4)):
        for config in (kubernetes[name], aws[name]):
            assert (config.min_worker_nodes, config.max_worker_nodes) == (0, nodes)
            assert config.labels["pool"] == name
            assert config.idle_timeout_s in (300, 600)
    assert kubernetes["gpu"].resources["GPU"] == aws["gpu"].resources["GPU"] == 4
    assert kubernetes["headgroup"].resources["CPU"] == aws["head"].resources["CPU"] == 0
