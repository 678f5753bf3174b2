"""Starts or joins Ray. Runs on the driver."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import shlex
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import ray
import ray._private.ray_constants
import ray._private.ray_logging
import ray.data
import ray.data.exceptions
import ray.exceptions

from tpn_ray import job, storage
from tpn_ray.errors import ConfigError, ResourceError

LOCAL_STORE_BYTES = 1024**3
"""Object store size of a Ray instance that a job starts by itself: some seconds of decoded clips."""
KNOCK_SECONDS = 10.0
ANCHOR_SECONDS = 300
"""Longest wait for the first task in a cluster, which takes a second."""
LEVEL_LINE = "Set ray log level from environment variable"
"""Part of a line that Ray prints about the very variable that silences it, before it takes effect."""
API_SERVER = "RAY_API_SERVER_ADDRESS"
"""Ray's variable for the address of the State API."""
CLUSTERS_ENABLED = ray._private.ray_constants.ENABLE_RAY_CLUSTER
"""What Ray is set to before a local one is started, which clears it."""

_opened = False
"""Whether `connect` made the connection that this process has."""
_of_local_ray: dict[str, str] = {}
"""Variables by which this process and those it starts find the local Ray that `connect` started, until it ends."""


def connect(
    address: str | None,
    *,
    workers_cpus: float,
    decode_cpus: float,
    storage_seconds: float = storage.PATIENCE_SECONDS,
) -> None:
    """Join the cluster at `address` (or RAY_ADDRESS, which `ray job submit` sets), or start a local Ray instance.

    A local Ray gets as many CPUs as the machine has, and at least `workers_cpus` plus what two decoding tasks need:
    its resources are only a count, and on a small machine training and decoding take turns. More workers than the
    machine has cores are refused, since they would only slow each other down.

    From here on, this process and all processes that work for it wait up to `storage_seconds` for unresponsive storage.
    An earlier connection made here is closed first. One that the caller made with `ray.init` is used as it is.
    """
    global _opened
    refuse_jobs_address(address)
    storage.set_patience(storage_seconds)
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the future default; silences a warning
    _quieten()
    if ray.is_initialized():
        if not _opened:
            _check_environment(storage_seconds)
            return
        disconnect()
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        _join(address, storage_seconds)
        _opened = True
        _anchor()
        return
    cores = _cores()
    if workers_cpus > cores:
        raise ResourceError(
            f"too few cores: the workers need {workers_cpus:g} CPUs, this machine has {cores}; use fewer "
            "--workers or smaller --cpus-per-worker, or --address of a cluster"
        )
    cpus = max(cores, int(workers_cpus + 2 * decode_cpus + 0.999))
    try:
        _start(cpus)
    except ResourceError:  # Ray gives its processes 30 s, which a machine that is busy for a moment may exceed
        _start(cpus)
    _opened = True
    # Several Ray instances may run on this machine; code that asks for "the" Ray must find this one.
    _of_local_ray["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    os.environ.update(_of_local_ray)


def _cores() -> int:
    return os.cpu_count() or 1


def room() -> dict[str, float]:
    """Return the resources that workers and a decoding task may take: the cluster's, or for a Ray that is started here
    and counts more CPUs than there are, this machine's cores and a CPU for decoding, which takes turns with them."""
    if ray.is_initialized() and not _of_local_ray:
        return dict(ray.cluster_resources())
    started = ray.cluster_resources() if ray.is_initialized() else {"GPU": math.inf}
    return {**started, "CPU": _cores() + 1.0}


def refuse_jobs_address(address: str | None) -> None:
    """Raise ConfigError, with the command to use, for the address of a dashboard: it takes jobs, and no driver can join
    the cluster by it."""
    address = address or os.environ.get("RAY_ADDRESS", "")
    if address.startswith(("http://", "https://")):
        words = job.command() or ["python", "PROGRAM"]
        if "--address" in words[:-1]:
            place = words.index("--address")
            del words[place : place + 2]
        raise ConfigError(
            f"{address} is where a cluster takes jobs, and a program that runs elsewhere cannot join by it; submit it "
            f"with ray job submit:\n  RAY_ADDRESS={address} ray job submit --working-dir . -- {shlex.join(words)}"
        )


def _start(cpus: int) -> None:
    # A local Ray is for this machine only: with this setting, the default on platforms other than Linux, everything it
    # opens listens on the loopback address. Ray has no other switch for that. The variable is for the processes that it
    # starts.
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    _of_local_ray["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ.update(_of_local_ray)
    # Ray Train asks the State API when it cleans up after a killed controller or a stopped trial. On a machine with
    # several Ray instances it cannot find the API by itself, so the CPUs are never freed, and the run would wait
    # forever.
    port = _free_port()
    before = os.environ.get(API_SERVER)
    os.environ[API_SERVER] = f"http://127.0.0.1:{port}"  # for the processes that Ray starts
    try:
        with without_lines_of(LEVEL_LINE):
            _init(
                address="local",
                num_cpus=cpus,
                object_store_memory=LOCAL_STORE_BYTES,
                include_dashboard=True,
                dashboard_port=port,
            )
    except Exception as error:  # Ray raises a plain Exception when its start takes too long
        disconnect()
        said = str(error).strip() or type(error).__name__
        raise ResourceError(
            f"Ray could not be started on this machine: {said.splitlines()[0]}\n"
            "Is it busy with other work, or short of memory? Then try again, or give --address of a cluster"
        ) from error
    finally:
        os.environ.pop(API_SERVER)
        if before is not None:
            os.environ[API_SERVER] = before


def _init(**settings: Any) -> None:
    ray.init(**settings, log_to_driver=False, logging_level=logging.ERROR)
    job.heed_signals()  # ray.init has replaced the handler of SIGTERM with one that ends the process abruptly


@contextlib.contextmanager
def without_lines_of(said: str) -> Iterator[None]:
    """Drop the lines that contain `said` from what is written to stderr meanwhile, including by Ray's C++ code."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            file.seek(0)
            lines = [line for line in file if said.encode() not in line]
            if lines:
                os.write(2, b"".join(lines))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _quieten() -> None:
    """Silence Ray: a job prints only what its user needs, and Ray's own messages stay in the session's log files."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # if set, Tune prints its tables even when told not to
    warnings.filterwarnings("ignore", module="ray")
    # Raylets write to their own logs; for a lost node they would print a hundred lines here.
    ray._private.ray_logging.stdout_deduplicator.skip_re = re.compile("")
    for name in ("ray.data", "ray.train", "ray.tune", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _anchor() -> None:
    """Make Ray Data create its cluster-wide actors here, on the driver's node.

    They stay forever on the node that first uses Ray Data. On a training node they would keep it from ever becoming
    idle and being removed, and they would be lost with the node.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = ANCHOR_SECONDS
    try:
        ray.data.from_items([0]).map_batches(lambda rows: rows, num_cpus=0).materialize()
    except (RuntimeError, ray.data.exceptions.ExecutionTimeoutError, ray.exceptions.RayError) as error:
        raise ResourceError(
            f"the cluster did not run even the smallest task within {ANCHOR_SECONDS} s: {str(error).splitlines()[0]}\n"
            "Look at `ray status`, and run jobs/doctor.py"
        ) from error


def _join(address: str, storage_seconds: float) -> None:
    # Shows runs on the dashboard's page of Ray Train, by an actor on the head that outlives them. It takes a process.
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
    try:
        _knock(address)
        with without_lines_of(LEVEL_LINE):
            _init(address=address, runtime_env=_environment(storage_seconds))
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        lines = str(error).strip().splitlines()
        raise ResourceError(
            f"no Ray cluster answers at {address!r}: {lines[0] if lines else type(error).__name__}\n"
            "Check --address (or RAY_ADDRESS), and RAY_AUTH_MODE=token if the cluster asks for a token"
        ) from error


def _environment(storage_seconds: float) -> dict[str, dict[str, str]] | None:
    """Return the runtime environment for the job's processes on a cluster; None if the defaults suffice.

    Processes with an environment of their own start more slowly. A local Ray inherits the driver's variables.
    """
    if storage_seconds == storage.PATIENCE_SECONDS:
        return None
    return {"env_vars": {storage.PATIENCE: f"{storage_seconds:g}"}}


def _check_environment(storage_seconds: float) -> None:
    """Raise ConfigError if the processes of a Ray that the caller started would not wait that long."""
    needed = _environment(storage_seconds)
    if needed is None:
        return
    given = ray.get_runtime_context().runtime_env.get("env_vars", {})
    if given.get(storage.PATIENCE) != needed["env_vars"][storage.PATIENCE]:
        raise ConfigError(
            f"storage_seconds={storage_seconds:g} cannot reach the processes of a Ray that is running already: start "
            f"it with ray.init(runtime_env={needed!r}), or leave its start to this function"
        )


def _knock(address: str) -> None:
    """Raise OSError if nothing listens at host:port, where Ray itself would keep trying for a quarter of an hour."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()


def disconnect() -> None:
    """Leave the cluster. A Ray instance that was started here ends with all its processes."""
    global _opened
    ray.shutdown()
    _opened = False
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = CLUSTERS_ENABLED
    for name, value in _of_local_ray.items():
        if os.environ.get(name) == value:
            del os.environ[name]
    _of_local_ray.clear()
