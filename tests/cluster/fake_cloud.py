"""A cloud on one machine, for Ray's own autoscaler: its nodes are real raylets beside the head's.

`FakeCloud` is loaded by the autoscaler's process. How many nodes of a type the cloud has to give stands in a file: with
fewer than there are, it takes some back, as a cloud does with spot nodes.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_WORKER,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from tests.ray_head import RayHead, ray_head
from tests.servers import free_port

HEAD_ID = "f" * 51 + "00000"
"""The only one that the fake provider knows."""
IDLE_SECONDS = 15
STORE_BYTES = 100 * 1024**2


class FakeCloud(FakeMultiNodeProvider):  # type: ignore[misc]  # Ray's classes are untyped here
    """Ray's fake provider, with a capacity.

    A node's Ray begins in the round after the autoscaler was shown the node, as on every cloud. Ray's own begins it at
    once: on a busy machine it may then join before the autoscaler has heard of it, which takes it for another, sends
    it away as one too many, and asks for no more of its type.
    """

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._ordered: dict[str, tuple[Any, ...]] = {}
        """What nodes without Ray begin with; the autoscaler has been shown those in `_shown`."""
        self._shown = set[str]()
        self._beginning = ""

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """Asked by the autoscaler at each of its rounds."""
        with self.lock:
            for kind in self._capacity():
                for node_id in self._of(kind)[self._capacity()[kind] :]:
                    self._end(self._nodes.pop(node_id), allow_graceful=False)
            for node_id in [one for one in self._ordered if one in self._shown]:
                threading.Thread(target=self._begin, args=(node_id, self._ordered.pop(node_id)), daemon=True).start()
            found: list[str] = super().non_terminated_nodes(tag_filters)
            self._shown.update(found)
        return found

    def _create_node_with_resources_and_labels(
        self, node_config: Any, tags: dict[str, str], count: int, resources: Any, labels: Any
    ) -> None:
        kind = tags[TAG_RAY_USER_NODE_TYPE]
        with self.lock:
            if len(self._of(kind)) >= self._capacity().get(kind, count):
                raise RuntimeError(f"no capacity for {kind}")
            node_id = super()._next_hex_node_id()
            self._ordered[node_id] = (node_config, tags, count, resources, labels)
            named = {TAG_RAY_NODE_KIND: NODE_KIND_WORKER, TAG_RAY_NODE_NAME: node_id}
            self._nodes[node_id] = {"tags": {**named, TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE, **tags}}

    def _begin(self, node_id: str, ordered: tuple[Any, ...]) -> None:
        with self.lock:
            if node_id in self._nodes:  # it may have been taken away again
                self._beginning = node_id
                super()._create_node_with_resources_and_labels(*ordered)

    def _next_hex_node_id(self) -> str:
        return self._beginning

    def _terminate_node(self, node: dict[str, Any]) -> None:
        self._end(node, allow_graceful=True)

    def _end(self, node: dict[str, Any], allow_graceful: bool) -> None:
        if "node" in node:
            node["node"].kill_all_processes(check_alive=False, allow_graceful=allow_graceful)

    def _capacity(self) -> dict[str, int]:
        capacity: dict[str, int] = self._file()["nodes"]
        return capacity

    def _of(self, kind: str) -> list[str]:
        """Nodes of a type, those last that go first."""
        first = self._file()["first"]
        found = [node for node in self._nodes if self.node_tags(node)[TAG_RAY_USER_NODE_TYPE] == kind]
        return sorted(found, key=lambda node: (node == first, node))

    def _file(self) -> Any:
        return json.loads(Path(self.provider_config["capacity_file"]).read_text())


@dataclass(frozen=True)
class NodeType:
    """What the nodes of a type have, and how many the autoscaler may start."""

    resources: dict[str, float]
    labels: dict[str, str]
    max_nodes: int


@dataclass(frozen=True)
class AutoscalingHead:
    """A head without CPUs, and the hand on the cloud's capacity."""

    head: RayHead
    capacity_file: Path

    def set_capacity(self, first: str = "", **nodes: int) -> None:
        """From now on the cloud has so many nodes of these types, and takes back those above: the node `first` if it is
        one of them, then the newest."""
        written = self.capacity_file.with_suffix(".new")
        written.write_text(json.dumps({"first": first, "nodes": nodes}))
        written.replace(self.capacity_file)


@contextlib.contextmanager
def autoscaling_head(folder: Path, types: dict[str, NodeType], **capacity: int) -> Iterator[AutoscalingHead]:
    """A head with Ray's autoscaler, which starts nodes of these types on demand."""
    port, config, capacity_file = free_port(), folder / "autoscaling.json", folder / "capacity.json"
    config.write_text(json.dumps(_config(types, f"127.0.0.1:{port}", capacity_file)))
    environment = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # nodes that it starts then have a loopback address, as the head has
        "PYTHONPATH": str(Path(__file__).parents[2]),  # for this module, and for the job on every node
    }
    flags = [f"--autoscaling-config={config}"]
    AutoscalingHead(None, capacity_file).set_capacity(**capacity)  # type: ignore[arg-type]
    with ray_head(0, environment, port=port, flags=flags) as head:
        yield AutoscalingHead(head, capacity_file)


def _config(types: dict[str, NodeType], gcs_address: str, capacity_file: Path) -> dict[str, Any]:
    """What a user writes for `ray up`, as far as the autoscaler's process reads it."""
    provider = {
        "type": "external",
        "module": f"{FakeCloud.__module__}.{FakeCloud.__name__}",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
        "head_node_id": HEAD_ID,
        "gcs_address": gcs_address,
        "capacity_file": str(capacity_file),
    }
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    workers = {
        name: {
            "resources": {"object_store_memory": STORE_BYTES, **kind.resources},
            "labels": kind.labels,
            "node_config": {},
            "min_workers": 0,
            "max_workers": kind.max_nodes,
        }
        for name, kind in types.items()
    }
    lists = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
    lists += ("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files")
    return {
        "cluster_name": "fake",
        "max_workers": sum(kind.max_nodes for kind in types.values()),
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": IDLE_SECONDS / 60,
        "provider": provider,
        "available_node_types": {"ray.head.default": head, **workers},
        "head_node_type": "ray.head.default",
        "file_mounts_sync_continuously": False,
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in (*lists, "rsync_exclude", "rsync_filter")},
    }
