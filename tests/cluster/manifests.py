"""The manifests as Kubernetes would get them: rendered from their folders, and what the checks read out of them."""

from __future__ import annotations

import copy
import functools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "cluster" / "kuberay"
JOBS = ("prepare", "train", "tune", "evaluate")
FOLDERS = ("settings", "mlflow", "monitoring", "cluster", "cluster-ft", *JOBS, "kueue", "kueue/train")
BYTES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def rendered(folder: str) -> list[Document]:
    """The documents of `kubectl apply -k cluster/kuberay/<folder>`, a copy to break."""
    return copy.deepcopy(list(_rendered(KUBERAY / folder)))


@functools.cache
def _rendered(folder: Path) -> tuple[Document, ...]:
    return render(folder)


def render(folder: Path) -> tuple[Document, ...]:
    """What kubectl makes of a folder."""
    kubectl = Path(sys.executable).parent / "kubectl"
    done = subprocess.run(
        [str(kubectl), "kustomize", str(folder)], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{folder}: {done.stderr}"
    return tuple(yaml.safe_load_all(done.stdout))


def constrained(package: str) -> str:
    """The version of a package in constraints.txt."""
    (version,) = re.findall(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return str(version)


def settings() -> dict[str, str]:
    """What the pods get as environment."""
    (data,) = [one["data"] for one in rendered("settings") if one["kind"] == "ConfigMap"]
    return dict(data)


def of_kind(documents: list[Document], kind: str) -> list[Document]:
    return [document for document in documents if document["kind"] == kind]


def cluster_specs(documents: list[Document]) -> Iterator[Document]:
    """The specification of every Ray cluster."""
    yield from (one["spec"] for one in of_kind(documents, "RayCluster"))
    yield from (one["spec"]["rayClusterSpec"] for one in of_kind(documents, "RayJob"))


def groups(spec: Document) -> list[Document]:
    """The head and the groups of workers."""
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def name(group: Document) -> str:
    return str(group.get("groupName", "head"))


def pod_specs(documents: list[Document]) -> Iterator[tuple[str, Document]]:
    """Every pod that would run, by a name for messages."""
    for spec in cluster_specs(documents):
        yield from ((name(group), group["template"]["spec"]) for group in groups(spec))
    for document in of_kind(documents, "RayJob"):
        yield "submitter", document["spec"]["submitterPodTemplate"]["spec"]
    for document in of_kind(documents, "StatefulSet") + of_kind(documents, "Deployment"):
        yield document["metadata"]["name"], document["spec"]["template"]["spec"]


def container(group: Document) -> Document:
    """Ray's own container, which is the first."""
    first: Document = group["template"]["spec"]["containers"][0]
    return first


def environment(container: Document) -> dict[str, str]:
    """Values that stand in the manifest."""
    return {one["name"]: one["value"] for one in container.get("env", []) if "value" in one}


def command(entrypoint: str) -> list[str]:
    """The words of an entrypoint, as the submitter's shell leaves them: with the settings filled in."""
    filled = re.sub(r"\$\{(\w+)\}", lambda found: settings()[found.group(1)], entrypoint)
    assert "$" not in filled, f"left to fill in: {filled}"
    return shlex.split(filled)


def quantity(text: str | int) -> float:
    """A number of Kubernetes: 500m, 16Gi."""
    found = re.fullmatch(r"([0-9.]+)(m|[kMGT]i?|)", str(text))
    assert found, f"no quantity: {text!r}"
    return float(found[1]) / 1000 if found[2] == "m" else float(found[1]) * BYTES[found[2]]
