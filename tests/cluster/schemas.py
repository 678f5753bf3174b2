"""What the API server would refuse: Kubernetes' own schemas, and the operator's, strictly."""

from __future__ import annotations

import functools
import gzip
import warnings
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.cluster.manifests import Document, cluster_specs, groups, of_kind

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import kubernetes_validate

FOLDER = Path(__file__).parent / "definitions"
"""The operator's custom resource definitions, as it installs them, gzipped (KubeRay, Apache-2.0)."""
FILES = {"RayCluster": "ray.io_rayclusters.yaml.gz", "RayJob": "ray.io_rayjobs.yaml.gz"}
NO_SCHEMA = ("eksctl.io", "monitoring.coreos.com", "kueue.x-k8s.io", "ray.io")
"""Groups that Kubernetes itself has no schemas of."""


def core_problems(documents: list[Document]) -> list[str]:
    """Of Kubernetes' own kinds, and of the pods inside Ray's."""
    found = []
    plain = [one for one in documents if not one["apiVersion"].startswith(NO_SCHEMA)]
    for document in [*plain, *_pod_templates(documents)]:
        version = kubernetes_validate.latest_version()
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"{document['kind']} {document['metadata']['name']}: {error.message} at {list(error.path)}")
        except (kubernetes_validate.SchemaNotFoundError, kubernetes_validate.InvalidSchemaError) as error:
            found.append(f"{document['kind']}: no schema: {error}")
    return found


def _pod_templates(documents: list[Document]) -> list[Document]:
    templates = [group["template"] for spec in cluster_specs(documents) for group in groups(spec)]
    templates += [one["spec"]["submitterPodTemplate"] for one in of_kind(documents, "RayJob")]
    return [
        {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": one} for one in templates
    ]


def operator_problems(documents: list[Document]) -> list[str]:
    """Of Ray's kinds."""
    found = []
    for document in documents:
        if document["kind"] in FILES and document["apiVersion"].startswith("ray.io"):
            version = document["apiVersion"].partition("/")[2]
            schema = _schemas(document["kind"]).get(version)
            if schema is None:
                found.append(f"{document['kind']}: the operator has no version {version!r}")
                continue
            errors = jsonschema.Draft202012Validator(schema).iter_errors(_completed(document, schema))
            found += [f"{document['kind']} {list(error.absolute_path)}: {error.message}" for error in errors]
    return found


@functools.cache
def _schemas(kind: str) -> dict[str, Document]:
    """By served version, made strict: what is not in the schema is an error, as for `kubectl apply`."""
    with gzip.open(FOLDER / FILES[kind]) as file:
        definition = yaml.load(file, Loader=yaml.CSafeLoader)
    return {
        version["name"]: _strict(version["schema"]["openAPIV3Schema"], top=True)
        for version in definition["spec"]["versions"]
        if version["served"]
    }


def _strict(schema: Any, top: bool = False) -> Any:
    if not isinstance(schema, dict):
        return schema
    strict = {key: value for key, value in schema.items() if key not in ("properties", "items", "additionalProperties")}
    if strict.pop("x-kubernetes-int-or-string", False):
        strict.pop("type", None)
        strict["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "properties" in schema:
        strict["properties"] = {name: _strict(one) for name, one in schema["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in schema:
            strict[key] = _strict(schema[key])
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if "properties" in schema and not open_ended:
        strict["additionalProperties"] = False
    if top:  # the API server knows metadata by itself
        strict["properties"]["metadata"] = {
            "type": "object",
            "anyOf": [{"required": ["name"]}, {"required": ["generateName"]}],
        }
    return strict


def _completed(value: Any, schema: Any) -> Any:
    """What the API server does first: nulls go, defaults come."""
    if isinstance(value, list):
        return [_completed(one, schema.get("items", {})) for one in value]
    if not isinstance(value, dict) or not isinstance(schema, dict):
        return value
    properties = schema.get("properties", {})
    others = schema.get("additionalProperties") if isinstance(schema.get("additionalProperties"), dict) else {}
    full = {key: _completed(one, properties.get(key, others)) for key, one in value.items() if one is not None}
    return full | {key: one["default"] for key, one in properties.items() if key not in full and "default" in one}
