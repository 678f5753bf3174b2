"""What runs on the nodes: their checks, and the workers of an all-reduce. Runs in Ray tasks and actors."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import ray
import torch
from torch import distributed as dist

from tpn_ray.doctor import node
from tpn_ray.doctor.findings import Verdict, judged
from tpn_ray.doctor.node import Versions
from tpn_ray.model.recognizer import ModelConfig

REDUCED_BYTES = {"gloo": 4 * 1024**2, "nccl": 256 * 1024**2}
REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class About:
    """The information that a node's checks need."""

    expected: Versions
    pixels: str
    """Digest of the decoder's self-test on the driver."""
    probe_uri: str
    probe_digest: str
    store_bytes: float
    gpus: float
    model: ModelConfig
    clips_shape: tuple[int, ...]
    jobs_url: str = ""
    ports: tuple[tuple[str, int], ...] = ()
    nodes: int = 1


Check = Callable[[About], Verdict]


def session_folder() -> str:
    """Return the folder where Ray keeps this node's logs and what does not fit into memory."""
    folder: str = ray._private.worker.global_worker.node.get_session_dir_path()
    return folder


CHECKS: dict[str, tuple[Check, str]] = {
    "versions": (
        lambda about: node.compare(node.versions(about.expected.packages), about.expected),
        node.VERSIONS_REMEDY,
    ),
    "shared memory": (lambda about: node.look_at_memory(about.store_bytes, about.gpus), node.SHM_REMEDY),
    "disk": (lambda about: node.look_at_disk(session_folder(), about.store_bytes), node.DISK_REMEDY),
    "decoder": (lambda about: node.look_at_decoder(about.pixels), node.DECODER_REMEDY),
    "confinement": (lambda about: node.look_at_confinement(), node.CONFINEMENT_REMEDY),
    "storage from the node": (
        lambda about: node.look_at_storage(about.probe_uri, about.probe_digest),
        "set the AWS variables, or an instance profile, where the node starts; a folder must be one that all share",
    ),
}
"""Checks of every node, with the remedy to show if one raises."""

HEAD_CHECKS: dict[str, tuple[Check, str]] = {
    "token": (lambda about: node.look_at_token(about.jobs_url), node.TOKEN_REMEDY),
    "ports": (
        lambda about: node.look_at_ports(
            dict(about.ports), about.nodes, node.http_status(about.jobs_url, "") in (401, 403)
        ),
        node.PORTS_REMEDY,
    ),
}


def look(check: str, about: About) -> Verdict:
    """Run one check of the node that this runs on."""
    act, remedy = (CHECKS | HEAD_CHECKS)[check]
    return judged(lambda: act(about), remedy)


def look_at_gpu(about: About) -> list[tuple[str, Verdict]]:
    """Run the checks that need a GPU; on a node without one, check whether it has some that Ray does not count."""
    if not about.gpus:
        return [("GPU", node.uncounted_gpus(about.gpus))]
    return node.look_at_gpu(about.gpus, about.model, about.clips_shape)


class Reducer:
    """One worker of an all-reduce, set up as Ray Train sets up its own."""

    def address(self) -> str:
        """Return an address where all workers can meet."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def reduce(self, address: str, rank: int, workers: int, backend: str, seconds: float) -> float:
        """Run the all-reduce and return its speed in gigabytes per second. Raises RuntimeError for a wrong sum."""
        device = "cuda" if backend == "nccl" else "cpu"
        dist.init_process_group(
            backend, init_method=address, rank=rank, world_size=workers, timeout=timedelta(seconds=seconds)
        )
        try:
            spent = []
            for _ in range(REPEATS):
                values = torch.full((REDUCED_BYTES[backend] // 4,), float(rank + 1), device=device)
                begin = time.perf_counter()
                dist.all_reduce(values)
                smallest, largest = values.min().item(), values.max().item()  # waits for the device
                spent.append(time.perf_counter() - begin)
                if not smallest == largest == workers * (workers + 1) / 2:
                    raise RuntimeError(f"the sum over {workers} workers is {smallest:g} to {largest:g}")
        finally:
            dist.destroy_process_group()
        return REDUCED_BYTES[backend] / min(spent) / 1e9
