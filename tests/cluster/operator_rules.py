"""What the KubeRay operator (1.7) refuses after its schema let it pass, as far as these manifests meet its rules."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.cluster.manifests import Document, container, environment, groups, name, of_kind

LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
"""A DNS-1035 label."""
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
LONGEST_JOB_NAME = 47
MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
RESOURCE_PARAMETERS = ("num-cpus", "num-gpus", "memory", "resources")
AUTOSCALER_VARIABLE = "RAY_enable_autoscaler_v2"
FIRST_WITH_TOKENS = (2, 52)


def operator_rules(documents: list[Document]) -> Iterator[str]:
    """Every rule that is broken."""
    for document in of_kind(documents, "RayCluster"):
        yield from _name(document)
        yield from _cluster(document["spec"])
    for document in of_kind(documents, "RayJob"):
        yield from _name(document)
        yield from _job(document["spec"])
        if "rayClusterSpec" in document["spec"]:
            yield from _cluster(document["spec"]["rayClusterSpec"])


def _name(document: Document) -> Iterator[str]:
    named = document["metadata"]["name"]
    if not LABEL.fullmatch(named) or len(named) > LONGEST_JOB_NAME:
        yield f"the name {named!r} is not a DNS label of at most {LONGEST_JOB_NAME} characters"


def _job(spec: Document) -> Iterator[str]:
    shutdown, rules = spec.get("shutdownAfterJobFinishes", False), spec.get("deletionStrategy", {})
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not shutdown:
        yield "ttlSecondsAfterFinished without shutdownAfterJobFinishes"
    if spec.get("suspend") and not shutdown:
        yield "suspend without shutdownAfterJobFinishes"
    if rules.get("deletionRules") and shutdown:
        yield "deletionRules with shutdownAfterJobFinishes"
    if ("rayClusterSpec" in spec) == ("clusterSelector" in spec):
        yield "not one of rayClusterSpec and clusterSelector"
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode not in MODES:
        yield f"no submissionMode {mode!r}"
    if spec.get("backoffLimit", 0) and ("clusterSelector" in spec or mode == "InteractiveMode"):
        yield "backoffLimit with clusterSelector or InteractiveMode"
    if mode == "SidecarMode" and {"submitterPodTemplate", "submitterConfig", "clusterSelector"} & set(spec):
        yield "SidecarMode with a submitter or a clusterSelector"
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(field, 1) <= 0:
            yield f"{field} must be positive"
    if spec.get("backoffLimit", 0) < 0:
        yield "backoffLimit must not be negative"


def _cluster(spec: Document) -> Iterator[str]:
    scaled = spec.get("enableInTreeAutoscaling", False)
    version = spec.get("autoscalerOptions", {}).get("version")
    head = environment(container(spec["headGroupSpec"]))
    if scaled and version and AUTOSCALER_VARIABLE in head:
        yield f"autoscalerOptions.version and {AUTOSCALER_VARIABLE}"
    if not scaled and head.get(AUTOSCALER_VARIABLE, "0") in ("1", "true"):
        yield f"{AUTOSCALER_VARIABLE} without enableInTreeAutoscaling"
    for group in groups(spec):
        yield from _group(group, scaled, version)
    if spec.get("authOptions", {}).get("mode") == "token":
        parts = re.match(r"(\d+)\.(\d+)", spec.get("rayVersion", ""))
        if not parts or (int(parts[1]), int(parts[2])) < FIRST_WITH_TOKENS:
            yield f"authOptions.mode token with rayVersion {spec.get('rayVersion')!r}"
    if "gcsFaultToleranceOptions" in spec:
        own = {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS", "REDIS_USERNAME"} & set(head)
        own |= {"redis-password", "redis-username"} & set(spec["headGroupSpec"].get("rayStartParams", {}))
        if own:
            yield f"gcsFaultToleranceOptions and {', '.join(sorted(own))}"
    elif "RAY_REDIS_ADDRESS" in head:
        yield "RAY_REDIS_ADDRESS without gcsFaultToleranceOptions"


def _group(group: Document, scaled: bool, version: str | None) -> Iterator[str]:
    parameters, labels = group.get("rayStartParams", {}), group.get("labels", {})
    if group.get("resources") and set(RESOURCE_PARAMETERS) & set(parameters):
        yield f"{name(group)}: resources in rayStartParams and in resources"
    if "labels" in parameters:
        yield f"{name(group)}: labels in rayStartParams"
    for key, value in labels.items():
        if not LABEL_KEY.fullmatch(key) or not LABEL_VALUE.fullmatch(value) or len(value) > 63:
            yield f"{name(group)}: {key}={value} is no label"
    if scaled and group.get("suspend"):
        yield f"{name(group)}: suspended with the autoscaler"
    if scaled and version == "v2" and group["template"]["spec"].get("restartPolicy", "Never") != "Never":
        yield f"{name(group)}: a restartPolicy other than Never with autoscaler v2"
    if not group.get("minReplicas", 0) <= group.get("replicas", 0) <= group.get("maxReplicas", 2**31):
        yield f"{name(group)}: replicas outside of minReplicas and maxReplicas"
