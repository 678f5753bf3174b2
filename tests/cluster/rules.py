"""What the project itself asks of its manifests; each check takes the documents of a folder and gives what is wrong."""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Iterator
from typing import Any

import yaml

from tests.cluster import job_flags
from tests.cluster.capacity import Demand, NodeGroup, problem
from tests.cluster.manifests import (
    ROOT,
    Document,
    cluster_specs,
    command,
    constrained,
    container,
    environment,
    groups,
    name,
    of_kind,
    pod_specs,
    quantity,
    rendered,
)
from tpn_ray.errors import ResourceError
from tpn_ray.resources import Decoding
from tpn_ray.training.machines import check_division
from tpn_ray.tuning.campaigns import cpus_per_trial

GPU = "nvidia.com/gpu"
HOME = "/home/ray"
"""Of the image's user."""
IMAGE = re.compile(r"(?:[\w.-]+(?::\d+)?/)*[\w.-]+(?::(?P<tag>[\w.-]+)(?:@sha256:\w+)?|@sha256:\w+)")
METADATA = "169.254.0.0/16"
PRIVATE = [
    ipaddress.ip_network(block)
    for block in ("10.0.0.0/8", "100.64.0.0/10", METADATA, "172.16.0.0/12", "192.168.0.0/16")
]
WRITTEN = ("runs/", "datasets/", "runs", "datasets")
"""Where the roles of iam/storage.json may write and delete."""
SPOT_NOTICE_SECONDS = 120
NODE_SECONDS = 900
"""A GPU machine of a cloud, its image included, is there after so long."""
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
SECRET_NAME = re.compile(r"(?i)password|secret|token|access_key|credential")
MACHINES = {"m7i.2xlarge": (8, 32, 0), "c7i.8xlarge": (32, 64, 0), "g6.12xlarge": (48, 192, 4)}
"""CPUs, GiB and GPUs of the instance types that are named."""
OURS = 0.94
"""Share of a machine's CPUs and memory that Kubernetes leaves to pods, at least."""


def versions(documents: list[Document]) -> Iterator[str]:
    """One version of Ray: of the specification, the images and the constraints."""
    ray = constrained("ray")
    for spec in cluster_specs(documents):
        if spec["rayVersion"] != ray:
            yield f"rayVersion {spec['rayVersion']}, constraints.txt has {ray}"
        for group in groups(spec):
            kind = "cuda" if gpus(group) else "cpu"
            image = container(group)["image"]
            if not re.search(rf"(^|/)tpn-ray(-{kind})?(:{re.escape(ray)}-{kind}|@sha256:\w+)$", image):
                yield f"{name(group)}: image {image}, not tpn-ray:{ray}-{kind}"


def tokens(documents: list[Document]) -> Iterator[str]:
    """Nobody gets in without the token."""
    for spec in cluster_specs(documents):
        if spec.get("authOptions", {}).get("mode") != "token":
            yield "authOptions.mode is not token"


def heads(documents: list[Document]) -> Iterator[str]:
    """The head runs drivers, and stays."""
    for spec in cluster_specs(documents):
        head = spec["headGroupSpec"]
        if head["rayStartParams"].get("num-cpus") != "0":
            yield "head: num-cpus is not 0, so that it gets tasks"
        if "market" in head.get("labels", {}) or head["template"]["spec"]["nodeSelector"] != {"tpn-ray/pool": "head"}:
            yield "head: not on the on-demand pool"


def places(documents: list[Document]) -> Iterator[str]:
    """Every group goes to its own pool, and tolerates what keeps others from there."""
    for spec in cluster_specs(documents):
        for group in groups(spec):
            pool = group["labels"]["pool"]
            selected = group["template"]["spec"].get("nodeSelector", {}).get("tpn-ray/pool")
            if selected != pool:
                yield f"{name(group)}: labelled pool={pool}, on machines of {selected}"
            wanted = ["tpn-ray/spot"] * (group["labels"].get("market") == "spot") + [GPU] * bool(gpus(group))
            for key in wanted:
                if not tolerates(group["template"]["spec"], {"key": key, "effect": "NoSchedule"}):
                    yield f"{name(group)}: does not tolerate the taint {key}"


def machines(documents: list[Document]) -> Iterator[str]:
    """The machines that eksctl.yaml makes hold the pods, and take them."""
    pools = yaml.safe_load((ROOT / "cluster" / "eksctl.yaml").read_text())["managedNodeGroups"]
    for spec in cluster_specs(documents):
        sidecar = spec.get("autoscalerOptions", {}).get("resources", {}).get("requests", {})
        for group in groups(spec):
            pod = group["template"]["spec"]
            found = [one for one in pools if pod["nodeSelector"].items() <= one.get("labels", {}).items()]
            if len(found) != 1:
                yield f"{name(group)}: {len(found)} pools have the labels {pod['nodeSelector']}"
                continue
            for taint in found[0].get("taints", []):
                if not tolerates(pod, taint):
                    yield f"{name(group)}: does not tolerate the taint {taint['key']} of its machines"
            kind = found[0].get("instanceType") or found[0]["instanceTypes"][0]
            cpus, gib, cards = MACHINES[kind]
            asked = container(group)["resources"]["requests"]
            extra = sidecar if name(group) == "head" else {}
            if quantity(asked["cpu"]) + quantity(extra.get("cpu", 0)) > OURS * cpus:
                yield f"{name(group)}: {asked['cpu']} CPUs do not fit a {kind}"
            if quantity(asked["memory"]) + quantity(extra.get("memory", 0)) > OURS * gib * 2**30:
                yield f"{name(group)}: {asked['memory']} do not fit a {kind}"
            if gpus(group) != cards:
                yield f"{name(group)}: {gpus(group)} GPUs of a {kind}, which has {cards}"


def shared_memory(documents: list[Document]) -> Iterator[str]:
    """Ray's object store fits /dev/shm, which counts against the container's memory."""
    for spec in cluster_specs(documents):
        for group in groups(spec):
            mounted = {one["mountPath"]: one["name"] for one in container(group).get("volumeMounts", [])}
            volumes = {one["name"]: one for one in group["template"]["spec"].get("volumes", [])}
            volume = volumes.get(mounted.get("/dev/shm", ""), {}).get("emptyDir", {})
            if volume.get("medium") != "Memory":
                yield f"{name(group)}: no memory at /dev/shm"
                continue
            store, room = int(group["rayStartParams"]["object-store-memory"]), quantity(volume["sizeLimit"])
            if not store < room < 0.5 * quantity(container(group)["resources"]["limits"]["memory"]):
                yield f"{name(group)}: an object store of {store} bytes, {room:g} in /dev/shm, and the memory's limit"


def notices(documents: list[Document]) -> Iterator[str]:
    """A node that must go has time to say so: Ray waits less than Kubernetes, which waits less than the cloud."""
    for spec in cluster_specs(documents):
        for group in spec["workerGroupSpecs"]:
            grace = group["template"]["spec"].get("terminationGracePeriodSeconds", 30)
            drain = float(environment(container(group)).get(DRAIN, 30))
            if not drain + 5 <= grace <= SPOT_NOTICE_SECONDS - 10:
                yield f"{name(group)}: Ray drains for {drain:g} s, Kubernetes waits {grace} s"


def locks(documents: list[Document]) -> Iterator[str]:
    """Nobody is root, workers have no business with Kubernetes, and no secret is written down."""
    for owner, pod in pod_specs(documents):
        user = pod.get("securityContext", {})
        if not user.get("runAsNonRoot") or not user.get("runAsUser") or "seccompProfile" not in user:
            yield f"{owner}: may run as root"
        if owner not in ("head",) and pod.get("automountServiceAccountToken") is not False:
            yield f"{owner}: gets a token for Kubernetes"
        for one in pod["containers"]:
            locked = one.get("securityContext", {})
            if locked.get("allowPrivilegeEscalation") is not False or locked.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{owner}: {one['name']} may gain privileges"
            yield from (
                f"{owner}: {variable} stands in the manifest"
                for variable in environment(one)
                if SECRET_NAME.search(variable)
            )
    for document in of_kind(documents, "ConfigMap"):
        yield from (f"{key} stands in a ConfigMap" for key in document["data"] if SECRET_NAME.search(key))
    yield from ("a Secret stands in the manifests" for _ in of_kind(documents, "Secret"))


def images(documents: list[Document]) -> Iterator[str]:
    """Nothing is run that is not named to the version, and that kustomize could not pin by digest."""
    for owner, pod in pod_specs(documents):
        for one in pod["containers"]:
            found = IMAGE.fullmatch(one["image"])
            if not found or found["tag"] == "latest":
                yield f"{owner}: the image {one['image']} has neither a version nor a digest"


def read_only(documents: list[Document]) -> Iterator[str]:
    """Code that got into a pod cannot change the image: only scratch space can be written."""
    for owner, pod in pod_specs(documents):
        empty = {volume["name"] for volume in pod.get("volumes", []) if "emptyDir" in volume}
        for one in pod["containers"]:
            if one.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
                yield f"{owner}: {one['name']} can write to its image"
            mounted = {mount["mountPath"] for mount in one.get("volumeMounts", []) if mount["name"] in empty}
            wanted = {"/tmp", *([HOME] if "tpn-ray" in one["image"] else [])}
            yield from (f"{owner}: {one['name']} cannot write to {path}" for path in sorted(wanted - mounted))
        for volume in pod.get("volumes", []):
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"{owner}: {volume['name']} may fill the machine's disk"
    for spec in cluster_specs(documents):
        options = spec.get("autoscalerOptions")
        if options is None:
            continue
        if options["securityContext"].get("readOnlyRootFilesystem") is not True:
            yield "autoscaler: can write to its image"
        there = {volume["name"] for volume in spec["headGroupSpec"]["template"]["spec"]["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in options.get("volumeMounts", [])}
        if not {"/tmp", HOME} <= set(mounts) or not set(mounts.values()) <= there:
            yield f"autoscaler: cannot write to /tmp and {HOME}"


def scratch(documents: list[Document]) -> Iterator[str]:
    """What Ray may write to /tmp fits the disk that the pod asks for."""
    for spec in cluster_specs(documents):
        for group in groups(spec):
            asked = quantity(container(group)["resources"]["requests"]["ephemeral-storage"])
            sizes = (volume.get("emptyDir", {}) for volume in group["template"]["spec"]["volumes"])
            disk = sum(quantity(one["sizeLimit"]) for one in sizes if "sizeLimit" in one and "medium" not in one)
            if disk > asked:
                yield f"{name(group)}: {disk:g} bytes of scratch space, {asked:g} asked for"


def arguments(documents: list[Document]) -> Iterator[str]:
    """No secret is an argument, which everybody on a machine can read."""
    for owner, pod in pod_specs(documents):
        for one in pod["containers"]:
            for line in "\n".join([*one.get("command", []), *one.get("args", [])]).splitlines():
                if re.search(r"--?\w*pass\w*|--?\w*token\w*|--?\w*secret\w*", line):
                    yield f"{owner}: a secret is an argument: {line.strip()}"


def probes(documents: list[Document]) -> Iterator[str]:
    """A server that hangs is begun again, and gets no calls before it answers."""
    for document in of_kind(documents, "StatefulSet") + of_kind(documents, "Deployment"):
        for one in document["spec"]["template"]["spec"]["containers"]:
            for probe in ("readinessProbe", "livenessProbe"):
                if probe not in one:
                    yield f"{document['metadata']['name']}: no {probe}"


def egress(documents: list[Document]) -> Iterator[str]:
    """Pods reach what they need: all of them names, Ray's nodes storage and tracking, the head Kubernetes."""
    for policy in of_kind(documents, "NetworkPolicy"):
        named, spec = policy["metadata"]["name"], policy["spec"]
        selected = spec["podSelector"].get("matchLabels", {})
        for rule in spec.get("egress", []):
            ports = {port["port"] for port in rule.get("ports", [])}
            nodes = [target for target in rule.get("to", []) if target.get("podSelector")]
            if not rule.get("to") or (not ports and not nodes):
                yield f"{named}: everything may leave"
            for block in (target["ipBlock"] for target in rule.get("to", []) if "ipBlock" in target):
                network = ipaddress.ip_network(block["cidr"])
                holes = [ipaddress.ip_network(hole) for hole in block.get("except", [])]
                private = [
                    one for one in PRIVATE if one.overlaps(network) and not any(one.subnet_of(hole) for hole in holes)
                ]
                if ipaddress.ip_network(METADATA) in private:
                    yield f"{named}: reaches the metadata service of the machines"
                if private and selected != {"ray.io/node-type": "head"}:
                    yield f"{named}: more than the head reaches private addresses, Kubernetes among them"
                if not private and (selected != {"ray.io/is-ray-node": "yes"} or ports != {443}):
                    yield f"{named}: more than Ray's nodes reach the internet, or by more than 443"
                if private and not ports <= {443, 6443}:
                    yield f"{named}: private addresses are reached by more than Kubernetes' ports"


def data(documents: list[Document]) -> Iterator[str]:
    """A job writes where the roles of the pods let it, and reads what they cannot delete."""
    for document in of_kind(documents, "RayJob"):
        words = command(document["spec"]["entrypoint"])
        for flag, value in itertools.pairwise(words):
            if value.startswith("s3://"):
                key = value.removeprefix("s3://").partition("/")[2]
                if flag in ("--out", "--storage", "--checkpoint") and not key.startswith(WRITTEN):
                    yield f"{flag} {value}: the roles of the pods may not write there"
                if flag == "--data" and "prepare.py" in words[1] and key.startswith(WRITTEN):
                    yield f"{flag} {value}: the roles of the pods may delete these sources"


def references(documents: list[Document]) -> Iterator[str]:
    """Accounts and settings that pods name are there."""
    there = rendered("settings")
    accounts = {one["metadata"]["name"] for one in of_kind(there, "ServiceAccount")}
    maps = {one["metadata"]["name"] for one in of_kind(there, "ConfigMap")}
    for owner, pod in pod_specs(documents):
        if pod.get("serviceAccountName", "default") not in accounts | {"default"}:
            yield f"{owner}: no account {pod['serviceAccountName']}"
        for source in (source for one in pod["containers"] for source in one.get("envFrom", [])):
            if "configMapRef" in source and source["configMapRef"]["name"] not in maps:
                yield f"{owner}: no ConfigMap {source['configMapRef']['name']}"
    for document in (one for one in documents if one["kind"] in ("RayCluster", "RayJob")):
        if document["metadata"].get("namespace") != "tpn-ray":
            yield f"{document['kind']}: in another namespace than its settings"


def clean_up(documents: list[Document]) -> Iterator[str]:
    """A finished or hung job costs nothing for long."""
    for document in of_kind(documents, "RayJob"):
        spec = document["spec"]
        if not spec.get("shutdownAfterJobFinishes") or not 0 < spec.get("ttlSecondsAfterFinished", 0) <= 3600:
            yield "the cluster of a finished job stays"
        if "activeDeadlineSeconds" not in spec or "preRunningDeadlineSeconds" not in spec:
            yield "a job without a deadline"
    for spec in cluster_specs(documents):
        for group in spec["workerGroupSpecs"]:
            if spec.get("enableInTreeAutoscaling") and (group["minReplicas"] or not group.get("idleTimeoutSeconds")):
                yield f"{name(group)}: does not shrink to nothing"


def entrypoints(documents: list[Document]) -> Iterator[str]:
    """Each job exists, takes these flags, and goes on under its name when it is begun again."""
    for document in of_kind(documents, "RayJob"):
        try:
            flags = job_flags.parse(*command(document["spec"]["entrypoint"]))
        except ValueError as error:
            yield str(error)
            continue
        resumable = getattr(flags, "name", "") or getattr(flags, "out", "") or hasattr(flags, "checkpoint")
        if document["spec"].get("backoffLimit") and not resumable:
            yield "begun again, the job would be another one: it has no --name"


def capacity(documents: list[Document]) -> Iterator[str]:
    """What the flags ask for fits the node groups at their largest."""
    for document in of_kind(documents, "RayJob"):
        spec = document["spec"]["rayClusterSpec"]
        try:
            flags = job_flags.parse(*command(document["spec"]["entrypoint"]))
        except ValueError:
            continue  # entrypoints says so
        why = problem(demand(flags), node_groups(spec))
        if why:
            yield why
        if hasattr(flags, "recipe"):
            try:
                check_division(flags.machines, flags.recipe)
            except ResourceError as error:
                yield str(error)
        if spec.get("enableInTreeAutoscaling"):
            yield from _patience(flags)


def _patience(flags: Any) -> Iterator[str]:
    """Nodes take minutes to come."""
    if decoding(flags).patience_seconds < NODE_SECONDS:
        yield "without --may-grow the job refuses a cluster that has no nodes yet, or gives up before they are there"


def decoding(flags: Any) -> Decoding:
    """How the tasks of a job decode."""
    holder = getattr(flags, "machines", None) or getattr(flags, "resources", None) or flags
    found: Decoding = holder.decoding
    return found


def node_groups(spec: Document) -> list[NodeGroup]:
    """At their largest, as Ray counts them. The head runs no tasks."""
    return [
        NodeGroup(
            name=name(group),
            nodes=group["maxReplicas"],
            cpus=quantity(container(group)["resources"]["limits"]["cpu"]),
            gpus=gpus(group),
        )
        for group in spec["workerGroupSpecs"]
    ]


def demand(flags: Any) -> Demand:
    """What a job with these flags must have at once."""
    task = decoding(flags).cpus
    if hasattr(flags, "decoding"):
        return Demand(decode_cpus=task)
    takes = flags.resources if hasattr(flags, "resources") else flags.machines
    each, decoders = takes.per_worker, 1
    trials = max(1, flags.how.max_concurrent) if hasattr(flags, "how") else 1
    if hasattr(flags, "machines"):
        decoders = round(trials * (cpus_per_trial(takes) - takes.workers * each.cpus) / task)
    return Demand(
        workers=trials * takes.workers,
        cpus_per_worker=each.cpus,
        gpus_per_worker=each.gpus,
        decoders=decoders,
        decode_cpus=task,
    )


def quotas(documents: list[Document]) -> Iterator[str]:
    """A job that waits in a queue can be admitted: its pods fit the quotas of the queue that it names."""
    there = rendered("kueue")
    queues = {one["metadata"]["name"]: one["spec"]["clusterQueue"] for one in of_kind(there, "LocalQueue")}
    pools = {one["metadata"]["name"]: one["spec"]["nodeLabels"] for one in of_kind(there, "ResourceFlavor")}
    limits = {
        one["metadata"]["name"]: {
            pools[flavor["name"]]["tpn-ray/pool"]: {
                resource["name"]: quantity(resource["nominalQuota"]) for resource in flavor["resources"]
            }
            for group in one["spec"]["resourceGroups"]
            for flavor in group["flavors"]
        }
        for one in of_kind(there, "ClusterQueue")
    }
    for document in of_kind(documents, "RayJob"):
        queue = document["metadata"]["labels"].get("kueue.x-k8s.io/queue-name")
        if queue is None:
            continue
        if queue not in queues:
            yield f"no queue {queue}"
            continue
        spec = document["spec"]
        if spec["rayClusterSpec"].get("enableInTreeAutoscaling"):
            yield "the autoscaler asks for nodes that the queue did not admit"
        asked: dict[str, dict[str, float]] = {}
        pods = [(group["template"]["spec"], group.get("replicas", 1)) for group in groups(spec["rayClusterSpec"])]
        for pod, count in [*pods, (spec["submitterPodTemplate"]["spec"], 1)]:
            pool = asked.setdefault(pod["nodeSelector"]["tpn-ray/pool"], {})
            for resource, amount in pod["containers"][0]["resources"]["requests"].items():
                pool[resource] = pool.get(resource, 0) + count * quantity(amount)
        for pool_name, resources in asked.items():
            for resource, amount in resources.items():
                if amount > limits[queues[queue]].get(pool_name, {}).get(resource, 0):
                    yield f"{amount:g} {resource} of pool {pool_name} are more than the quota"


def gpus(group: Document) -> int:
    return int(container(group)["resources"]["limits"].get(GPU, 0))


def tolerates(pod: Document, taint: Document) -> bool:
    """Whether the pod may be on a machine with this taint."""
    return any(
        one.get("key") in (None, taint["key"])
        and one.get("effect") in (None, taint["effect"])
        and (one.get("operator") == "Exists" or one.get("value") == taint.get("value"))
        for one in pod.get("tolerations", [])
    )


RULES = (
    versions,
    tokens,
    heads,
    places,
    machines,
    shared_memory,
    notices,
    locks,
    images,
    read_only,
    scratch,
    arguments,
    probes,
    egress,
    data,
    references,
    clean_up,
    entrypoints,
    capacity,
    quotas,
)
