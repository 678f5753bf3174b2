"""The examination: storage and tracking from here, then the cluster, every node, and an all-reduce. Runs on the driver.

Every wait is bounded, and a failure becomes a row of the table while the other checks continue.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import ray
import tyro
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from tpn_ray import recipes, storage, tracking
from tpn_ray.doctor import node, node_checks, stores
from tpn_ray.doctor.decoder_check import decoder_self_test
from tpn_ray.doctor.findings import (
    FAIL,
    NOT_HERE,
    Finding,
    Verdict,
    examined,
    failed,
    judged,
    not_here,
    passed,
    warned,
)
from tpn_ray.doctor.node_checks import About
from tpn_ray.errors import ConfigError
from tpn_ray.names import no_such
from tpn_ray.resources import PerWorker

NODES_AT_ONCE = 32
MOST_WORKERS = 64
"""Maximum number of workers of the all-reduce if none is given."""
HEAD = "node:__internal_head__"
SMALL_CPUS = 0.01
SILENT = "no answer from the node"

TRACKING_REMEDY = (
    "check --tracking-uri and that the server is running; MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
    "MLFLOW_TRACKING_TOKEN, hold its credentials"
)
ARTIFACTS_REMEDY = (
    "start the server with --artifacts-destination, where it may write, and let this user make and delete runs"
)
NODE_REMEDY = "look at the node in the dashboard and at ray status; take it out of the cluster if it is lost"
BUSY_REMEDY = "wait until other jobs have ended, or ask for less with --workers; ray status shows what is held"
REDUCE_REMEDY = (
    "let the nodes reach each other on all ports (security group, network policy); choose the network with "
    "NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME; NCCL_DEBUG=INFO says more"
)
CLUSTER_REMEDY = (
    "check --address (or RAY_ADDRESS), that ray status answers there, and the token: RAY_AUTH_MODE=token and the same "
    "~/.ray/auth_token as on the head"
)


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What to examine, with the settings that the jobs will use."""

    storage: str = "runs"
    """Storage, as in jobs/train.py: a folder that every node sees, or s3://bucket/prefix."""

    data: str = ""
    """Dataset, as in jobs/train.py; not examined by default."""

    tracking_uri: str = ""
    """MLflow server (http://...) or store; by default SQLite below --storage, as in jobs/train.py."""

    address: str = ""
    """Ray cluster to join; by default RAY_ADDRESS (set by `ray job submit`), otherwise a local Ray."""

    workers: int = 0
    """Number of workers of the all-reduce. 0: one for each free GPU, or without GPUs one for each node and at least
    two. On a cluster that adds nodes on demand, an explicit number makes it add them."""

    per_worker: Annotated[PerWorker, tyro.conf.arg(name="")] = field(default_factory=PerWorker)

    recipe: str = "k400_r50_8x8"
    """Recipe whose convolutions are tried in bf16 if there is a GPU."""

    check_seconds: float = 60.0
    """Timeout of each check, in seconds."""

    wait_seconds: float = 120.0
    """Longest wait for the all-reduce's workers, in seconds; allow for the time that a cloud takes to start nodes."""

    def __post_init__(self) -> None:
        if self.workers < 0 or self.workers == 1:
            raise ConfigError(f"workers={self.workers}: an all-reduce needs at least 2; 0 takes what is free")
        for name in ("check_seconds", "wait_seconds"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be above 0")
        if self.recipe not in recipes.RECIPES:
            raise ConfigError(no_such("recipe", self.recipe, recipes.RECIPES))


def services(wanted: Examination) -> list[Finding]:
    """Examine storage and the tracking server from this machine. Invalid URIs raise ConfigError."""
    folder = storage.absolute(wanted.storage)
    data = storage.absolute(wanted.data) if wanted.data else ""
    seconds = wanted.check_seconds
    found = [*stores.examine_storage(folder, seconds), *stores.examine_data(data, seconds)]
    return found + examine_tracking(wanted.tracking_uri, folder, seconds)


def examine_tracking(tracking_uri: str, folder: str, seconds: float) -> list[Finding]:
    """Check that the tracking server is reachable, its version, and whether a run can be created and deleted."""
    local = storage.absolute("runs") if storage.is_s3(folder) else folder

    def uri() -> str:
        return tracking_uri or tracking.local_uri(local)

    def version() -> Verdict:
        there, here = tracking.probe_version(uri())
        if there.split(".")[:2] == here.split(".")[:2]:
            return passed(f"MLflow {there}")
        return warned(f"MLflow {there} there, {here} here", "use the server version of constraints.txt")

    def run() -> Verdict:
        tracking.probe_run(uri())
        return passed("a run was made, read back with its artifact, and deleted")

    where = tracking_uri or "SQLite below --storage"
    first = examined("tracking: server", where, version, seconds=seconds, remedy=TRACKING_REMEDY)
    act = (lambda: not_here("not tried: the server does not answer")) if first.result == FAIL else run
    return [first, examined("tracking: run", where, act, seconds=seconds, remedy=ARTIFACTS_REMEDY)]


def cluster(wanted: Examination, connect: Callable[[], None]) -> list[Finding]:
    """Run all checks that need Ray, which `connect` joins."""
    where = wanted.address or os.environ.get("RAY_ADDRESS") or "a local Ray"
    mode = os.environ.get("RAY_AUTH_MODE", "")
    found = [examined("client", "driver", lambda: node.client_mode(mode), seconds=10, remedy="")]

    def join() -> Verdict:
        connect()
        return passed(f"{len(alive())} node(s), {_resources()}")

    joined = examined("cluster", where, join, seconds=wanted.wait_seconds, remedy=CLUSTER_REMEDY)
    found.append(joined)
    if joined.result == FAIL:
        return found
    # First, because it makes an autoscaling cluster start its nodes.
    longest = wanted.wait_seconds + 4 * wanted.check_seconds
    found += gathered("all-reduce", lambda: [all_reduce(wanted)], longest)
    checks = len(node_checks.CHECKS | node_checks.HEAD_CHECKS) + 1
    longest = 2 * wanted.check_seconds * (checks + 1) * (1 + len(alive()) // NODES_AT_ONCE)
    return found + gathered("nodes", lambda: examine_nodes(wanted), longest)


def gathered(check: str, act: Callable[[], list[Finding]], seconds: float) -> list[Finding]:
    """Collect several findings; if that fails, return a single one that says why."""
    found: list[Finding] = []

    def run() -> Verdict:
        found.extend(act())
        return passed("")

    outcome = examined(check, "cluster", run, seconds=seconds, remedy=NODE_REMEDY)
    return [outcome] if outcome.result == FAIL else found


def alive() -> list[dict[str, Any]]:
    """List the nodes that are alive, the head first."""
    nodes = [one for one in ray.nodes() if one["Alive"]]
    return sorted(nodes, key=lambda one: (HEAD not in one["Resources"], one["NodeManagerAddress"], one["NodeID"]))


def _resources() -> str:
    total = ray.cluster_resources()
    return f"{total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs"


# --- nodes


def examine_nodes(wanted: Examination) -> list[Finding]:
    """Run every check on every node; nodes in parallel, the checks of one node in sequence."""
    nodes = alive()
    probe = storage.join(storage.absolute(wanted.storage), f".doctor-{uuid.uuid4().hex}", "probe")
    content = os.urandom(1000)
    judged(lambda: stores.written(probe, content), "")  # if it fails, so do the nodes' checks, and so did the driver's
    recipe = recipes.recipe(wanted.recipe)
    side = recipe.augment.crop_px
    about = About(
        expected=node.versions(node.required()),
        pixels=_own_pixels(),
        probe_uri=probe,
        probe_digest=hashlib.sha256(content).hexdigest(),
        store_bytes=0,
        gpus=0,
        model=recipe.model,
        clips_shape=(recipe.loop.micro_batch_clips, recipe.clip.channels, recipe.clip.frames, side, side),
        nodes=len(nodes),
    )
    try:
        with ThreadPoolExecutor(NODES_AT_ONCE) as pool:
            found = pool.map(lambda one: list(_one_node(one, about, wanted.check_seconds)), nodes)
            return [finding for findings in found for finding in findings]
    finally:
        judged(lambda: stores.deleted(storage.parent(probe)), "")


def _own_pixels() -> str:
    try:
        return decoder_self_test().digest
    except Exception:  # the driver's own node then has a failing row
        return "none: it fails on the driver"


def _one_node(one: dict[str, Any], about: About, seconds: float) -> Iterable[Finding]:
    resources = one["Resources"]
    about = replace(about, store_bytes=resources.get("object_store_memory", 0.0), gpus=resources.get("GPU", 0.0))
    where = f"{one['NodeManagerAddress']} ({one['NodeID'][:6]})"
    checks = dict(node_checks.CHECKS)
    if HEAD in resources:
        about = replace(about, **_head_ports())
        checks |= node_checks.HEAD_CHECKS
    here = NodeAffinitySchedulingStrategy(one["NodeID"], soft=False)
    for check, (_, remedy) in checks.items():
        task = ray.remote(node_checks.look).options(num_cpus=0, max_retries=0, scheduling_strategy=here)
        finding = examined(check, where, _answered(task, (check, about), seconds), seconds=2 * seconds, remedy=remedy)
        yield finding
        if SILENT in finding.found:
            yield Finding(check="other checks", where=where, result=NOT_HERE, found="not tried: the node is silent")
            return
    task = ray.remote(node_checks.look_at_gpu).options(
        num_cpus=0, num_gpus=1 if about.gpus >= 1 else 0, max_retries=0, scheduling_strategy=here
    )
    verdicts: list[tuple[str, Verdict]] = []

    def gpu() -> Verdict:
        verdicts.extend(_get(task, (about,), seconds))
        return verdicts[0][1]

    yield examined("GPU", where, gpu, seconds=2 * seconds, remedy=f"{node.GPU_REMEDY}. {BUSY_REMEDY}")
    for check, verdict in verdicts[1:]:
        yield Finding(check=check, where=where, result=verdict.result, found=verdict.found, remedy=verdict.remedy)


def _head_ports() -> dict[str, Any]:
    """Return where the dashboard and the GCS are, as the head knows it."""
    dashboard = str(ray._private.services.get_webui_url_from_internal_kv() or "")
    gcs = str(ray.get_runtime_context().gcs_address)
    named = (("dashboard", dashboard), ("GCS", gcs))
    ports = tuple((name, int(place.rpartition(":")[2])) for name, place in named if place)
    return {"jobs_url": f"http://{dashboard}/api/jobs/" if dashboard else "http://127.0.0.1:9/", "ports": ports}


def _answered(task: Any, arguments: tuple[Any, ...], seconds: float) -> Callable[[], Verdict]:
    def ask() -> Verdict:
        verdict: Verdict = _get(task, arguments, seconds)
        return verdict

    return ask


def _get(task: Any, arguments: tuple[Any, ...], seconds: float) -> Any:
    """Return a task's result; a task that hangs is stopped together with its process."""
    reference = task.remote(*arguments)
    try:
        return ray.get(reference, timeout=seconds)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(reference, force=True)
        raise TimeoutError(f"{SILENT} within {seconds:g} s") from None


# --- all-reduce


@dataclass(frozen=True, kw_only=True)
class Group:
    """The workers of an all-reduce."""

    workers: int
    each: PerWorker
    remark: str = ""


def group_for(wanted: Examination, total: dict[str, float], free: dict[str, float], nodes: int) -> Group | None:
    """Return the group that was asked for, or by default one for what is free; None if nothing is free."""
    if wanted.workers:
        return Group(workers=wanted.workers, each=replace(wanted.per_worker, cpus=wanted.per_worker.cpus or SMALL_CPUS))
    gpus, unheld = int(total.get("GPU", 0)), int(free.get("GPU", 0))
    remark = f"; {gpus - unheld} of {gpus} GPUs are held by others" if unheld < gpus else ""
    if unheld >= 2:
        return Group(workers=min(unheld, MOST_WORKERS), each=PerWorker(gpus=1, cpus=0), remark=remark)
    if free.get("CPU", 0) <= 0:
        return None
    return Group(workers=min(max(nodes, 2), MOST_WORKERS), each=PerWorker(cpus=SMALL_CPUS), remark=remark)


def all_reduce(wanted: Examination) -> Finding:
    """Run an all-reduce, NCCL over GPUs or gloo over CPUs, and check the sum."""
    nodes = [one for one in alive() if one["Resources"].get("CPU")]
    group = group_for(wanted, ray.cluster_resources(), ray.available_resources(), len(nodes))
    if group is None:
        found = "no CPU or GPU is free now; --workers 2 waits for some, or makes a cluster grow"
        return examined("all-reduce", "cluster", lambda: not_here(found), seconds=10, remedy="")
    backend = "nccl" if group.each.gpus else "gloo"
    return examined(
        f"all-reduce ({backend})",
        f"{group.workers} workers",
        lambda: _reduced(group, backend, wanted),
        seconds=wanted.wait_seconds + 3 * wanted.check_seconds,
        remedy=REDUCE_REMEDY,
    )


def _reduced(group: Group, backend: str, wanted: Examination) -> Verdict:
    bundles = [group.each.bundle] * group.workers
    places = placement_group(bundles, strategy="SPREAD")
    actors: list[Any] = []
    try:
        if not places.wait(wanted.wait_seconds):
            asked = ", ".join(f"{amount:g} {name}" for name, amount in group.each.bundle.items())
            return failed(
                f"{group.workers} workers of {asked} could not be placed within {wanted.wait_seconds:g} s", BUSY_REMEDY
            )
        actors = [_actor(places, place, group) for place in range(group.workers)]
        seconds = wanted.check_seconds
        address = ray.get(actors[0].address.remote(), timeout=2 * seconds)
        sums = [
            actor.reduce.remote(address, rank, group.workers, backend, seconds) for rank, actor in enumerate(actors)
        ]
        speeds = ray.get(sums, timeout=seconds)
    finally:
        for actor in actors:
            ray.kill(actor)
        remove_placement_group(places)
    return passed(f"the sum is right; {min(speeds):.2g} GB/s{group.remark}")


def _actor(places: PlacementGroup, place: int, group: Group) -> Any:
    return (
        ray.remote(node_checks.Reducer)
        .options(
            num_cpus=group.each.cpus,
            num_gpus=group.each.gpus,
            max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(places, placement_group_bundle_index=place),
        )
        .remote()
    )
