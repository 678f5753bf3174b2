"""aws.yaml: Ray's own schema of cluster files, EC2's own model of what starts a machine, and what we want of it.

No account is asked: whether the roles, images and quotas are there, these tests cannot tell.
"""

from __future__ import annotations

import copy
from typing import Any

import botocore.session
import botocore.validate
import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster import rules
from tests.cluster.manifests import ROOT, constrained

CLUSTER = yaml.safe_load((ROOT / "cluster" / "aws.yaml").read_text())
KINDS = CLUSTER["available_node_types"]


def check(cluster: dict[str, Any]) -> None:
    """As `ray up` does first."""
    validate_config(prepare_config(copy.deepcopy(cluster)))


def ec2_problems(node: dict[str, Any]) -> str:
    model = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    report = botocore.validate.ParamValidator().validate({**node["node_config"], "MinCount": 1, "MaxCount": 1}, model)
    return str(report.generate_report())


def test_the_launcher_takes_it() -> None:
    check(CLUSTER)


@pytest.mark.parametrize("kind", KINDS)
def test_ec2_takes_what_starts_a_machine(kind: str) -> None:
    assert ec2_problems(KINDS[kind]) == ""


def test_mistakes_are_found() -> None:
    misspelt = copy.deepcopy(CLUSTER)
    misspelt["available_node_types"]["gpu"]["max_wrokers"] = 1
    with pytest.raises(jsonschema.ValidationError, match="max_wrokers"):
        check(misspelt)
    assert "SpotMarket" in ec2_problems({"node_config": {"SpotMarket": {}}})


def test_versions() -> None:
    ray = constrained("ray")
    assert CLUSTER["docker"]["image"].endswith(f"/tpn-ray:{ray}-cpu")
    assert KINDS["gpu"]["docker"]["worker_image"].endswith(f"/tpn-ray:{ray}-cuda")


def test_spot_where_it_may_be_lost_and_nowhere_else() -> None:
    market = {kind: node["node_config"].get("InstanceMarketOptions") for kind, node in KINDS.items()}
    assert market == {"head": None, "cpu": None, "gpu": {"MarketType": "spot"}}
    assert KINDS["gpu"]["labels"]["market"] == "spot"


def test_nodes_are_as_large_as_their_machines() -> None:
    for kind in ("cpu", "gpu"):
        cpus, _, gpus = rules.MACHINES[KINDS[kind]["node_config"]["InstanceType"]]
        assert (KINDS[kind]["resources"]["CPU"], KINDS[kind]["resources"].get("GPU", 0)) == (cpus, gpus)
    assert KINDS["head"]["resources"] == {"CPU": 0}
    assert CLUSTER["max_workers"] == sum(KINDS[kind]["max_workers"] for kind in ("cpu", "gpu"))


def test_nobody_gets_in() -> None:
    """Token, loopback, roles in place of keys, no metadata for who is not on the machine."""
    assert "-e RAY_AUTH_MODE=token" in CLUSTER["docker"]["run_options"]
    assert CLUSTER["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    (start,) = [line for line in CLUSTER["head_start_ray_commands"] if "--head" in line]
    assert "--dashboard-host=127.0.0.1" in start
    for node in KINDS.values():
        assert set(node["node_config"]["IamInstanceProfile"]) == {"Name"}
        assert node["node_config"]["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
    words = [option.partition("=")[0] for option in CLUSTER["docker"]["run_options"]]
    assert not [word for word in words if rules.SECRET_NAME.search(word)]


def test_workers_watch_for_the_notice() -> None:
    (watch,) = [line for line in CLUSTER["worker_start_ray_commands"] if "spot_notice" in line]
    assert "python /opt/tpn_ray/cluster/spot_notice.py --address $RAY_HEAD_IP:6379" in watch
    assert watch.rstrip().endswith("&")
