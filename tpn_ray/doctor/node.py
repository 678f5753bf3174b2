"""Checks of one machine: packages, code, shared memory, disk, decoder, GPU, ports, tokens. Runs anywhere.

The checks take plain values and are called on every node by node_checks.py.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil
import torch

import tpn_ray
from tpn_ray import storage
from tpn_ray.doctor.decoder_check import decoder_self_test
from tpn_ray.doctor.findings import Verdict, failed, not_here, passed, warned
from tpn_ray.model.convolution_check import convolution_self_test
from tpn_ray.model.recognizer import ModelConfig, build_model
from tpn_ray.sandbox import breakout
from tpn_ray.sandbox.breakout import BreakoutOutcome

FULL_SHARE = 0.95
"""Share of a full disk above which Ray creates no more objects there."""
HTTP_SECONDS = 10.0
LOOPBACK = ("127.", "::1", "::ffff:127.")

VERSIONS_REMEDY = (
    "use one image for all nodes, or pip install --constraint constraints.txt on each; ray job submit --working-dir . "
    "ships the code to all of them"
)
SHM_REMEDY = (
    "give the node more: on Kubernetes an emptyDir with medium: Memory at /dev/shm, with Docker --shm-size; or a "
    "smaller ray start --object-store-memory"
)
NAMELESS_REMEDY = (
    "pip install --constraint constraints.txt . where the doctor is started: its metadata names what the nodes need"
)
DISK_REMEDY = "free some, or put Ray's folder on a larger disk with ray start --temp-dir"
DECODER_REMEDY = "install the av wheel of constraints.txt on this node (pip install --force-reinstall av==VERSION)"
CONFINEMENT_REMEDY = (
    "run Linux 5.13 or newer on x86_64 or aarch64 with landlock in /sys/kernel/security/lsm, in containers with the "
    "default seccomp profile (RuntimeDefault on Kubernetes) of containerd 1.6, Docker 20.10.18 or newer; until then "
    "let this node decode only videos from people you trust"
)
GPU_REMEDY = (
    "check nvidia-smi on the node, the NVIDIA driver, that the image has torch for CUDA, and that the container gets "
    "its GPUs (nvidia.com/gpu on Kubernetes, --gpus all with Docker)"
)
BF16_REMEDY = "train with --loop.precision fp32, or install another version of cuDNN"
TOKEN_REMEDY = (
    "export RAY_AUTH_MODE=token on every node and client, make a token with ray get-auth-token --generate, put the "
    "same file ~/.ray/auth_token everywhere, and start Ray again"
)
PORTS_REMEDY = (
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 ray start --dashboard-host 127.0.0.1 --node-ip-address 127.0.0.1 on a single "
    "machine; on several keep others out by a firewall, security group or network policy"
)


@dataclass(frozen=True, kw_only=True)
class Versions:
    """The versions of the software on a machine."""

    python: str
    packages: dict[str, str]
    """Version of each package by name; "none" if it is not installed."""
    code: str
    """Digest of this package's own files."""


def required(distribution: str = "tpn_ray") -> list[str]:
    """List the packages that an installed distribution needs; empty if it is not installed."""
    try:
        lines = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return []
    return [re.split(r"[^\w.-]", line)[0] for line in lines if "extra ==" not in line]


def versions(packages: Iterable[str]) -> Versions:
    """Look up the versions that this process runs, and those of the given packages."""
    root, digest = Path(tpn_ray.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    installed = {name: _version(name) for name in packages}
    return Versions(python=platform.python_version(), packages=installed, code=digest.hexdigest()[:12])


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def compare(here: Versions, expected: Versions) -> Verdict:
    """Compare a node's versions with the driver's, which name all packages that matter."""
    pairs = [("Python", here.python, expected.python)]
    pairs += [(name, here.packages[name], version) for name, version in expected.packages.items()]
    pairs += [("tpn_ray's code", here.code, expected.code)]
    other = [f"{name} {found} (driver {wanted})" for name, found, wanted in pairs if found != wanted]
    if other:
        return failed(f"not as on the driver: {', '.join(other)}", VERSIONS_REMEDY)
    if not expected.packages:
        return warned(
            f"Python {here.python} and the code alike; packages were not compared, since tpn_ray is not installed on "
            "the driver and nothing else names them",
            NAMELESS_REMEDY,
        )
    named = [f"{name} {here.packages[name]}" for name in ("ray", "torch") if name in here.packages]
    rest = f"{len(here.packages) - len(named)} more packages and the code alike"
    return passed(", ".join([f"Python {here.python}", *named, rest]))


def shared_memory(total_bytes: int, store_bytes: float, gpus: float) -> Verdict:
    """Compare /dev/shm with the object store, which Ray puts on disk if it does not fit; NCCL needs it too."""
    found = f"/dev/shm holds {gigabytes(total_bytes)}, the object store is {gigabytes(store_bytes)}"
    if total_bytes >= store_bytes:
        return passed(found)
    return failed(found, SHM_REMEDY) if gpus else warned(f"{found}: it lies on a disk", SHM_REMEDY)


def disk(free_bytes: int, total_bytes: int, store_bytes: float) -> Verdict:
    """Check the disk where Ray keeps its session and objects that do not fit into memory."""
    found = f"{gigabytes(free_bytes)} free of {gigabytes(total_bytes)}"
    if free_bytes <= (1 - FULL_SHARE) * total_bytes:
        return failed(f"{found}: above {FULL_SHARE:.0%} full Ray makes no more objects", DISK_REMEDY)
    if free_bytes < 2 * store_bytes:
        return warned(f"{found}: less than two object stores of {gigabytes(store_bytes)}", DISK_REMEDY)
    return passed(found)


def look_at_memory(store_bytes: float, gpus: float) -> Verdict:
    """Check this machine's shared memory."""
    if not Path("/dev/shm").exists():
        return not_here("no /dev/shm")
    return shared_memory(shutil.disk_usage("/dev/shm").total, store_bytes, gpus)


def look_at_disk(folder: str, store_bytes: float) -> Verdict:
    """Check the disk that holds `folder`."""
    usage = shutil.disk_usage(folder)
    return disk(usage.free, usage.total, store_bytes)


def look_at_decoder(expected: str) -> Verdict:
    """Decode a synthetic clip and compare the digest of its pixels with the driver's, `expected`."""
    report = decoder_self_test()
    if not report.trusted:
        return failed(
            f"a made clip is off by {report.error:.1f} levels"
            + ("" if report.exact else ", and frames picked out differ from those of a whole decoding"),
            DECODER_REMEDY,
        )
    if report.digest != expected:
        return failed("H.264 decodes to other pixels than on the driver", DECODER_REMEDY)
    return passed("a made H.264 clip comes back, with the driver's pixels")


def look_at_confinement() -> Verdict:
    """Try to break out of a process that is confined like those that decode videos."""
    return confinement_verdict(breakout.tried())


def confinement_verdict(trial: BreakoutOutcome) -> Verdict:
    """Judge by the layers that hold and the attempts that were not refused."""
    missing, possible = trial.confinement.missing, trial.possible
    if not missing and not possible:
        layers = f"seccomp and Landlock {trial.confinement.landlock_abi}"
        return passed(f"{layers}; {len(trial.outcomes)} attempts to break out of a decoding process were refused")
    problems = []
    if missing:
        problems.append(f"without {', '.join(missing)} ({trial.confinement.why_not})")
    if possible:
        more = f" and {len(possible) - 3} more" if len(possible) > 3 else ""
        problems.append(f"code in a decoding process can {', '.join(possible[:3])}{more}")
    return warned("; ".join(problems), CONFINEMENT_REMEDY)


def look_at_storage(probe_uri: str, digest: str) -> Verdict:
    """Read what the driver has written, and write next to it."""
    if hashlib.sha256(storage.read_bytes(probe_uri)).hexdigest() != digest:
        return failed(
            "the content is not what the driver wrote", "give --storage a folder that all nodes share, or s3://"
        )
    storage.check_writable(storage.parent(probe_uri))
    return passed("read what the driver wrote, and wrote next to it")


def look_at_gpu(gpus: float, model: ModelConfig, clips_shape: Sequence[int]) -> list[tuple[str, Verdict]]:
    """Check the GPU that this process was given, and whether bf16 convolutions can be trusted on it."""
    if not torch.cuda.is_available():
        return [("GPU", failed(f"Ray counts {gpus:g} GPUs, torch sees none", GPU_REMEDY))]
    memory = torch.cuda.get_device_properties(0).total_memory
    name = f"{torch.cuda.get_device_name(0)}, {gigabytes(memory)}, CUDA {torch.version.cuda}; Ray counts {gpus:g}"
    return [("GPU", passed(name)), ("bf16 convolutions", convolutions(model, clips_shape, "cuda"))]


def convolutions(model: ModelConfig, clips_shape: Sequence[int], device: str) -> Verdict:
    """Compare the network's kinds of convolutions in bf16 with float32."""
    report = convolution_self_test(build_model(model).to(device), clips_shape)
    return passed(str(report)) if report.trusted else failed(str(report), BF16_REMEDY)


def uncounted_gpus(gpus: float) -> Verdict:
    """Check whether a node without a GPU for Ray has some anyway."""
    devices = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if devices and not gpus:
        return warned(f"{devices} NVIDIA devices, of which Ray counts none", "start Ray with --num-gpus")
    return not_here("Ray counts no GPU")


def look_at_ports(ports: dict[str, int], nodes: int, asks_for_token: bool) -> Verdict:
    """Check whether the head's ports, given by name, are reachable from other machines."""
    sockets = psutil.net_connections(kind="tcp")
    listening = [one.laddr for one in sockets if one.status == psutil.CONN_LISTEN and one.laddr]
    addresses = {name: sorted({one.ip for one in listening if one.port == port}) for name, port in ports.items()}
    return ports_verdict(addresses, nodes, asks_for_token)


def ports_verdict(addresses: dict[str, list[str]], nodes: int, asks_for_token: bool) -> Verdict:
    """Judge by the addresses that each port listens on."""
    opened = {name: [ip for ip in ips if not ip.startswith(LOOPBACK)] for name, ips in addresses.items()}
    shown = ", ".join(f"{name} on {' '.join(ips)}" for name, ips in opened.items() if ips)
    if not any(addresses.values()):
        return warned("their sockets were not found", "run the doctor on the head, or look with ss -ltn")
    if not shown:
        return passed(f"{' and '.join(addresses)} listen on the loopback address alone")
    if nodes > 1 and asks_for_token and not opened.get("dashboard"):
        return passed(f"{shown}: the other nodes need it, and a token is asked for")
    return warned(f"{shown}: whoever reaches this machine reaches them", PORTS_REMEDY)


def look_at_token(jobs_url: str) -> Verdict:
    """Send real requests to the dashboard: without a token, and with the one on this machine."""
    token = own_token()
    with_token = http_status(jobs_url, token) if token else None
    return token_verdict(http_status(jobs_url, ""), with_token, has_token=bool(token))


def token_verdict(without: int | None, with_token: int | None, *, has_token: bool) -> Verdict:
    """Judge by the HTTP statuses of both requests; None means no answer."""
    if without is None:
        return failed(
            "the dashboard does not answer",
            "start Ray with its dashboard (pip install 'ray[default]', --include-dashboard true): jobs are submitted "
            "to it, and Ray Train cleans up by it",
        )
    if without not in (401, 403):
        return failed(f"the dashboard answers without a token (HTTP {without}): it runs anybody's code", TOKEN_REMEDY)
    if not has_token:
        return failed("the dashboard asks for a token, and there is none on the head", TOKEN_REMEDY)
    if with_token != 200:
        return failed(f"the dashboard refuses the token that is here (HTTP {with_token})", TOKEN_REMEDY)
    return passed("the dashboard refuses requests without the token, and takes those with it")


def client_mode(mode: str) -> Verdict:
    """Check the token mode that this shell passes to `ray job submit`."""
    if mode == "token":
        return passed("RAY_AUTH_MODE=token")
    return warned(
        f"RAY_AUTH_MODE is {mode or 'not set'}: ray job submit from this environment sends no token",
        "export RAY_AUTH_MODE=token",
    )


def own_token() -> str:
    """Return this machine's token, found by Ray's own rules; empty if there is none."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    return path.read_text().strip() if path.is_file() else ""


def http_status(url: str, token: str) -> int | None:
    """Return the HTTP status of a GET; None if there is no answer."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=HTTP_SECONDS) as answer:
            status: int = answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
    return status


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
