"""The manifests for Kubernetes: the schemas of Kubernetes and of the operator, the operator's rules, and ours; and that
a broken manifest is found. No API server runs here: what only one can tell, these tests do not.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster import rules, schemas
from tests.cluster.manifests import FOLDERS, KUBERAY, Document, container, of_kind, rendered
from tests.cluster.operator_rules import operator_rules


@pytest.mark.parametrize("folder", FOLDERS)
def test_kubernetes_would_take_it(folder: str) -> None:
    assert schemas.core_problems(rendered(folder)) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_operators_schema_takes_it(folder: str) -> None:
    assert schemas.operator_problems(rendered(folder)) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_operator_would_take_it(folder: str) -> None:
    assert list(operator_rules(rendered(folder))) == []


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("folder", FOLDERS)
def test_it_is_as_we_want_it(folder: str, rule: Callable[[list[Document]], list[str]]) -> None:
    assert list(rule(rendered(folder))) == []


def test_every_folder_is_checked() -> None:
    there = {path.parent.relative_to(KUBERAY).as_posix() for path in KUBERAY.rglob("kustomization.yaml")}
    assert there == {*FOLDERS, "rayjob"}  # rayjob is a part of others


# --- what is broken is found

Break = Callable[[Document], object]


def entrypoint(before: str, after: str) -> Break:
    def change(job: Document) -> None:
        assert before in job["spec"]["entrypoint"]
        job["spec"]["entrypoint"] = job["spec"]["entrypoint"].replace(before, after)

    return change


def cluster(job: Document) -> Document:
    spec: Document = job["spec"]["rayClusterSpec"]
    return spec


def cpu(job: Document) -> Document:
    return cluster(job)["workerGroupSpecs"][0]  # type: ignore[no-any-return]


def gpu(job: Document) -> Document:
    return cluster(job)["workerGroupSpecs"][1]  # type: ignore[no-any-return]


def pod(group: Document) -> Document:
    return group["template"]["spec"]  # type: ignore[no-any-return]


MISTAKES: dict[str, tuple[Break, str]] = {
    "a flag that does not exist": (entrypoint("--workers", "--wrokers"), "--wrokers"),
    "a flag's value that cannot be": (
        entrypoint("--min-workers 4", "--min-workers 9"),
        "min_workers=9 must be",
    ),
    "a recipe that does not exist": (entrypoint("k400_r50_8x8", "k400_r50"), "unknown recipe"),
    "a job that does not exist": (entrypoint("train.py", "trian.py"), "trian.py does not exist"),
    "no name to go on by": (entrypoint("--name k400", ""), "it has no --name"),
    "too few GPUs": (lambda job: gpu(job).update(maxReplicas=1), "4 of the workers fit on"),
    "workers wider than a node": (entrypoint("--cpus-per-worker 4", "--cpus-per-worker 60"), "0 of the workers fit"),
    "more workers than micro-batches": (entrypoint("--workers 8", "--workers 9"), "cannot share the 8 micro-batches"),
    "a cluster that grows, and a job that does not know": (entrypoint("--may-grow", ""), "without --may-grow"),
    "another version of Ray": (lambda job: cluster(job).update(rayVersion="2.59.0"), "rayVersion 2.59.0"),
    "an image of another version": (
        lambda job: container(gpu(job)).update(image="tpn-ray:2.59.0-cuda"),
        "gpu: image tpn-ray:2.59.0-cuda",
    ),
    "GPUs without CUDA": (lambda job: container(gpu(job)).update(image="tpn-ray:2.60.0-cpu"), "gpu: image"),
    "an image without a version": (lambda job: container(gpu(job)).update(image="tpn-ray"), "neither a version nor"),
    "the newest image": (lambda job: container(cpu(job)).update(image="tpn-ray:latest"), "neither a version nor"),
    "an image that can be written to": (
        lambda job: container(gpu(job))["securityContext"].pop("readOnlyRootFilesystem"),
        "gpu: ray-worker can write to its image",
    ),
    "a submitter that can write to its image": (
        lambda job: job["spec"]["submitterPodTemplate"]["spec"]["containers"][0]["securityContext"].clear(),
        "submitter: ray-job-submitter can write to its image",
    ),
    "an autoscaler that can write to its image": (
        lambda job: cluster(job)["autoscalerOptions"]["securityContext"].pop("readOnlyRootFilesystem"),
        "autoscaler: can write",
    ),
    "an autoscaler without a folder for its log": (
        lambda job: cluster(job)["autoscalerOptions"].pop("volumeMounts"),
        "autoscaler: cannot write to /tmp",
    ),
    "no place for Ray's sessions": (
        lambda job: container(cpu(job))["volumeMounts"].pop(1),
        "cpu: ray-worker cannot write to /tmp",
    ),
    "scratch space without a limit": (
        lambda job: pod(cpu(job))["volumes"][1].update(emptyDir={}),
        "may fill the machine's disk",
    ),
    "more scratch space than the disk": (
        lambda job: pod(cpu(job))["volumes"][1].update(emptyDir={"sizeLimit": "200Gi"}),
        "of scratch space",
    ),
    "a secret as an argument": (
        lambda job: container(cpu(job)).update(command=["ray", "start", "--redis-password=x"]),
        "a secret is an argument",
    ),
    "results among the sources": (
        entrypoint("}/runs", "}/videos"),
        "the roles of the pods may not write there",
    ),
    "a missing toleration": (
        lambda job: pod(gpu(job)).update(tolerations=[{"key": rules.GPU, "operator": "Exists"}]),
        "does not tolerate the taint tpn-ray/spot",
    ),
    "a missing toleration of GPUs": (lambda job: pod(gpu(job)).pop("tolerations"), "taint nvidia.com/gpu"),
    "another pool": (lambda job: pod(gpu(job))["nodeSelector"].update({"tpn-ray/pool": "gpus"}), "on machines of gpus"),
    "a pod larger than its machine": (
        lambda job: container(cpu(job))["resources"]["requests"].update(cpu="32"),
        "32 CPUs do not fit a c7i.8xlarge",
    ),
    "ttl without shutdown": (
        lambda job: job["spec"].update(shutdownAfterJobFinishes=False),
        "ttlSecondsAfterFinished without shutdownAfterJobFinishes",
    ),
    "a mode that does not exist": (lambda job: job["spec"].update(submissionMode="K8sMode"), "no submissionMode"),
    "two clusters": (
        lambda job: job["spec"].update(clusterSelector={"ray.io/cluster": "tpn-ray"}),
        "not one of rayClusterSpec and clusterSelector",
    ),
    "the autoscaler chosen twice": (
        lambda job: container(cluster(job)["headGroupSpec"])["env"].append(
            {"name": "RAY_enable_autoscaler_v2", "value": "1"}
        ),
        "autoscalerOptions.version and RAY_enable_autoscaler_v2",
    ),
    "labels where they are not read": (
        lambda job: gpu(job)["rayStartParams"].update(labels="market=spot"),
        "labels in rayStartParams",
    ),
    "pods that restart": (lambda job: pod(cpu(job)).update(restartPolicy="Always"), "a restartPolicy other than Never"),
    "no token": (lambda job: cluster(job).pop("authOptions"), "authOptions.mode is not token"),
    "tasks on the head": (
        lambda job: cluster(job)["headGroupSpec"]["rayStartParams"].pop("num-cpus"),
        "num-cpus is not 0",
    ),
    "no shared memory": (lambda job: container(cpu(job)).pop("volumeMounts"), "no memory at /dev/shm"),
    "a store larger than /dev/shm": (
        lambda job: cpu(job)["rayStartParams"].update({"object-store-memory": "30000000000"}),
        "an object store of 30000000000 bytes",
    ),
    "no time to drain": (lambda job: pod(gpu(job)).pop("terminationGracePeriodSeconds"), "Kubernetes waits 30 s"),
    "root": (lambda job: pod(gpu(job))["securityContext"].update(runAsNonRoot=False), "may run as root"),
    "a key": (
        lambda job: container(gpu(job))["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}),
        "AWS_SECRET_ACCESS_KEY stands in the manifest",
    ),
    "an account that is not there": (
        lambda job: pod(gpu(job)).update(serviceAccountName="tpn-ray"),
        "no account tpn-ray",
    ),
    "nodes that stay": (lambda job: gpu(job).update(minReplicas=1, replicas=1), "does not shrink to nothing"),
    "a pod's field misspelt": (lambda job: pod(gpu(job)).update(nodeSelectors={}), "nodeSelectors"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake: str) -> None:
    """In the manifest of the training job."""
    change, finding = MISTAKES[mistake]
    documents = rendered("train")
    change(documents[0])
    seen = []
    for check in (operator_rules, *rules.RULES, schemas.core_problems):
        seen += list(check(documents))
        if any(finding in line for line in seen):
            return
    pytest.fail(f"not found: {finding}; but {seen}")


ALL = {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"port": 443}]}
OPENED: dict[str, tuple[str, Document, str]] = {
    "everything": ("ray-nodes", {}, "everything may leave"),
    "the metadata service": ("services", ALL, "reaches the metadata service"),
    "Kubernetes for all": (
        "names",
        {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 443}]},
        "more than the head",
    ),
    "the internet for submitters": (
        "submitters",
        {"to": [{"ipBlock": {"cidr": "52.0.0.0/8"}}], "ports": [{"port": 443}]},
        "more than Ray's nodes reach the internet",
    ),
    "other ports": (
        "services",
        {"to": [{"ipBlock": {"cidr": "52.0.0.0/8"}}], "ports": [{"port": 443}, {"port": 22}]},
        "or by more than 443",
    ),
    "a database of the cloud": (
        "kubernetes",
        {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 5432}]},
        "by more than Kubernetes' ports",
    ),
}


@pytest.mark.parametrize("opened", OPENED)
def test_a_hole_in_the_network_is_found(opened: str) -> None:
    named, rule, finding = OPENED[opened]
    documents = rendered("settings")
    (policy,) = [one for one in of_kind(documents, "NetworkPolicy") if one["metadata"]["name"] == named]
    policy["spec"]["egress"].append(rule)
    assert finding in "".join(rules.egress(documents))


def test_only_the_head_reaches_kubernetes_and_submitters_reach_the_head_alone() -> None:
    reached: dict[str, set[str]] = {}
    for policy in of_kind(rendered("settings"), "NetworkPolicy"):
        labels = policy["spec"]["podSelector"].get("matchLabels", {"all": "pods"})
        who = ",".join(f"{key.rpartition('/')[2]}={value}" for key, value in labels.items())
        if policy["spec"].get("egress"):
            reached.setdefault(who, set()).add(policy["metadata"]["name"])
    assert reached == {
        "all=pods": {"names"},
        "is-ray-node=yes": {"ray-nodes", "services"},
        "node-type=head": {"kubernetes"},
        "role=submitter": {"submitters"},
    }


def test_redis_gets_its_password_by_standard_input(tmp_path: Path) -> None:
    """Its very command, with a redis-server that says what it was given."""
    (server,) = of_kind(rendered("cluster-ft"), "StatefulSet")
    (redis,) = server["spec"]["template"]["spec"]["containers"]
    fake = tmp_path / "redis-server"
    fake.write_text('#!/bin/sh\necho "arguments: $*"\ncat\n')
    fake.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "REDIS_PASSWORD": "0123abcd"}
    done = subprocess.run(redis["command"], env=environment, capture_output=True, text=True, timeout=20, check=True)
    said, *settings = done.stdout.splitlines()
    assert said == "arguments: -"
    assert settings == ["appendonly yes", "dir /data", "requirepass 0123abcd"]


@pytest.mark.parametrize("folder", ["mlflow", "cluster-ft"])
@pytest.mark.parametrize("probe", ["readinessProbe", "livenessProbe"])
def test_a_missing_probe_is_found(folder: str, probe: str) -> None:
    documents = rendered(folder)
    (server,) = of_kind(documents, "StatefulSet") + of_kind(documents, "Deployment")
    server["spec"]["template"]["spec"]["containers"][0].pop(probe)
    assert f"no {probe}" in "".join(rules.probes(documents))


AGAINST_THE_SCHEMA: dict[str, tuple[Break, str]] = {
    "a field misspelt": (lambda job: cluster(job).update(rayVersions="2.60.0"), "'rayVersions' was unexpected"),
    "a field in the wrong place": (lambda job: job["spec"].update(idleTimeoutSeconds=60), "'idleTimeoutSeconds' was"),
    "a wrong type": (lambda job: gpu(job).update(maxReplicas="four"), "'four' is not of type 'integer'"),
    "a number for a text": (
        lambda job: cluster(job)["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        "0 is not of type 'string'",
    ),
    "something missing": (lambda job: pod(gpu(job)).pop("containers"), "'containers' is a required property"),
    "no such choice": (
        lambda job: cluster(job)["autoscalerOptions"].update(version="v3"),
        "'v3' is not one of",
    ),
    "no such version": (lambda job: job.update(apiVersion="ray.io/v2"), "no version 'v2'"),
    "resource for resources": (
        lambda job: container(gpu(job)).update(resource=container(gpu(job)).pop("resources")),
        "'resource' was unexpected",
    ),
}


@pytest.mark.parametrize("mistake", AGAINST_THE_SCHEMA)
def test_the_operators_schema_finds_a_mistake(mistake: str) -> None:
    change, finding = AGAINST_THE_SCHEMA[mistake]
    documents = rendered("train")
    change(documents[0])
    found = schemas.operator_problems(documents)
    assert any(finding in line for line in found), found


def test_kubernetes_schemas_find_a_mistake() -> None:
    documents = rendered("settings")
    of_kind(documents, "NetworkPolicy")[0]["spec"]["podSelectors"] = {}
    assert "podSelectors" in "".join(schemas.core_problems(documents))


def test_a_queue_that_is_too_small_is_found() -> None:
    documents = rendered("kueue/train")
    gpu(documents[0])["replicas"] = 9
    assert "36 nvidia.com/gpu of pool gpu are more than the quota" in list(rules.quotas(documents))
