"""What the pods and machines may do in the account: by the policies that are to be attached to their roles."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from typing import Any

import botocore.session
import pytest
import yaml

from tests.cluster.manifests import ROOT

Policy = dict[str, Any]

STORAGE: Policy = json.loads((ROOT / "cluster" / "iam" / "storage.json").read_text())
HEAD: Policy = json.loads((ROOT / "cluster" / "iam" / "head.json").read_text())
EKSCTL = yaml.safe_load((ROOT / "cluster" / "eksctl.yaml").read_text())
AWS = yaml.safe_load((ROOT / "cluster" / "aws.yaml").read_text())
BUCKET = "arn:aws:s3:::my-bucket"


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def allows(policy: Policy, action: str, resource: str) -> bool:
    """Whether a statement allows it, whatever its conditions."""
    return any(
        statement["Effect"] == "Allow"
        and any(fnmatchcase(action, one) for one in listed(statement["Action"]))
        and any(fnmatchcase(resource, one) for one in listed(statement["Resource"]))
        for statement in policy["Statement"]
    )


def roles() -> dict[str, Policy]:
    accounts = EKSCTL["iam"]["serviceAccounts"]
    found = {one["roleName"]: one["attachPolicy"] for one in accounts if "attachPolicy" in one}
    return {**found, "iam/storage.json": STORAGE}


@pytest.mark.parametrize("role", ["tpn-ray-head", "tpn-ray-worker", "iam/storage.json"])
def test_sources_are_read_and_results_written(role: str) -> None:
    policy = roles()[role]
    assert policy == STORAGE
    assert allows(policy, "s3:ListBucket", BUCKET)
    for key in ("videos/kinetics400/run/a.mp4", "runs/k400/run.json", "datasets/k/shards/train-00000.parquet"):
        assert allows(policy, "s3:GetObject", f"{BUCKET}/{key}")
    for action in ("s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"):
        assert allows(policy, action, f"{BUCKET}/runs/k400/run.json")
        assert allows(policy, action, f"{BUCKET}/datasets/k/dataset.json")
        assert not allows(policy, action, f"{BUCKET}/videos/kinetics400/run/a.mp4")
        assert not allows(policy, action, f"{BUCKET}/runs-of-others/x")
        assert not allows(policy, action, "arn:aws:s3:::another-bucket/runs/x")


@pytest.mark.parametrize("policy", [STORAGE, HEAD])
def test_no_action_is_a_pattern_and_each_exists(policy: Policy) -> None:
    """EC2's own model of its operations; those of S3 have names of their own in policies."""
    operations = set(botocore.session.get_session().get_service_model("ec2").operation_names)
    for statement in policy["Statement"]:
        for action in listed(statement["Action"]):
            assert "*" not in action
            service, _, name = action.partition(":")
            assert service != "ec2" or name in operations
        if "*" in listed(statement["Resource"]):
            assert all(action.startswith("ec2:Describe") for action in listed(statement["Action"]))


def test_the_head_starts_and_ends_machines_of_its_cluster_alone() -> None:
    """By the tag that Ray's launcher gives them; and hands on no role but the workers'."""
    (ends,) = [one for one in HEAD["Statement"] if "ec2:TerminateInstances" in one["Action"]]
    assert ends["Condition"] == {"StringEquals": {"aws:ResourceTag/ray-cluster-name": AWS["cluster_name"]}}
    starts = [one for one in HEAD["Statement"] if "ec2:RunInstances" in one["Action"]]
    (instances,) = [one for one in starts if any("instance/" in resource for resource in listed(one["Resource"]))]
    assert instances["Condition"] == {"StringEquals": {"aws:RequestTag/ray-cluster-name": AWS["cluster_name"]}}
    (passes,) = [one for one in HEAD["Statement"] if "iam:PassRole" in one["Action"]]
    assert passes["Resource"].endswith(":role/my-tpn-ray-worker")
    workers = {kind["node_config"]["IamInstanceProfile"]["Name"] for kind in AWS["available_node_types"].values()}
    assert workers == {"my-tpn-ray-head", "my-tpn-ray-worker"}
    image = AWS["available_node_types"]["head"]["node_config"]["ImageId"].removeprefix("resolve:ssm:")
    assert allows(HEAD, "ssm:GetParameters", f"arn:aws:ssm:us-east-1::parameter{image}")
    assert not any(
        allows(HEAD, action, "arn:aws:ec2:us-east-1:my-account:instance/i")
        for action in ("ec2:StopInstances", "ec2:ModifyInstanceAttribute")
    )


def test_nobody_is_told_to_take_a_policy_of_everything() -> None:
    assert "FullAccess" not in (ROOT / "cluster" / "README.md").read_text()
