"""Starting or joining Ray. Runs on the driver."""

from __future__ import annotations

import contextlib
import logging
import os
import re
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
from tpn_ray.errors import ResourceError

LOCAL_STORE_BYTES = 1024**3
"""Object store of a Ray that a job starts for itself: some seconds of decoded clips."""
KNOCK_SECONDS = 10.0
ANCHOR_SECONDS = 300
"""Longest wait for the first task in a cluster, which takes a second."""
LEVEL_LINE = "Set ray log level from environment variable"
"""Ray says this of the very variable that quietens it, before it does."""
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
    """Join the cluster at `address` (or RAY_ADDRESS, which `ray job submit` sets); without one, start a local Ray.

    A local Ray has as many CPUs as the machine, and at least what `workers_cpus` and one decoding task need: its
    resources are only a count, and on a small machine training and decoding take turns. More workers than the machine
    has cores are refused, since they would only slow each other down.

    From here on, this process and all that work for it wait up to `storage_seconds` for storage that does not answer.
    An earlier connection of this module is closed first. One that the caller made with `ray.init` is used as it is.
    """
    global _opened
    storage.set_patience(storage_seconds)
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default; silences a warning
    _quieten()
    if ray.is_initialized():
        if not _opened:
            return
        disconnect()
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        _join(address, storage_seconds)
        _opened = True
        _anchor()
        return
    cores = os.cpu_count() or 1
    if workers_cpus > cores:
        raise ResourceError(
            f"too few cores: the workers need {workers_cpus:g} CPUs, this machine has {cores}; use fewer "
            "--workers or smaller --cpus-per-worker, or --address of a cluster"
        )
    _start(max(cores, int(workers_cpus + 2 * decode_cpus + 0.999)))
    _opened = True
    # Several Rays may run on this machine; what asks for "the" Ray must find this one.
    _of_local_ray["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    os.environ.update(_of_local_ray)


def _start(cpus: int) -> None:
    # A local Ray is for this machine alone: with this, its default elsewhere than on Linux, everything that it opens
    # listens on the loopback address. It has no other switch for it; the variable is for the processes that it starts.
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    _of_local_ray["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ.update(_of_local_ray)
    # Ray Train's clean-up of what a killed controller or a stopped trial held asks the State API. On a machine with
    # several Rays it finds none by itself, and the CPUs that it should free are lost: the run would wait forever.
    port = _free_port()
    before = os.environ.get(API_SERVER)
    os.environ[API_SERVER] = f"http://127.0.0.1:{port}"  # for the processes that Ray starts
    try:
        with _without(LEVEL_LINE):
            _init(
                address="local",
                num_cpus=cpus,
                object_store_memory=LOCAL_STORE_BYTES,
                include_dashboard=True,
                dashboard_port=port,
            )
    except Exception as error:  # Ray's own class for a start that takes too long is just this one
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
    job.heed_signals()  # it has replaced the handler of SIGTERM with one that ends the process in the middle


@contextlib.contextmanager
def _without(said: str) -> Iterator[None]:
    """What is written to stderr meanwhile, by Ray's C++ too, without the lines that hold `said`."""
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
    """A job prints what its user needs; Ray's own messages stay in the session's log files."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # with it, Tune prints its tables even when told not to
    warnings.filterwarnings("ignore", module="ray")
    # What raylets have to say is in their logs; of a node that is lost it would be a hundred lines here.
    ray._private.ray_logging.stdout_deduplicator.skip_re = re.compile("")
    for name in ("ray.data", "ray.train", "ray.tune", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _anchor() -> None:
    """Have Ray Data make here, on the driver's node, what it keeps for the whole cluster.

    Its actors stay for ever on the node that first uses it. That would be a node that trains: it would never be idle,
    and so never go away by itself, and a node that is lost takes them with it.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = ANCHOR_SECONDS
    try:
        ray.data.from_items([0]).map_batches(lambda rows: rows, num_cpus=0).materialize()
    except (RuntimeError, ray.data.exceptions.ExecutionTimeoutError, ray.exceptions.RayError) as error:
        raise ResourceError(
            f"the cluster did not run the smallest of tasks within {ANCHOR_SECONDS} s: {str(error).splitlines()[0]}\n"
            "Look at `ray status`, and run jobs/doctor.py"
        ) from error


def _join(address: str, storage_seconds: float) -> None:
    try:
        _knock(address)
        with _without(LEVEL_LINE):
            _init(address=address, runtime_env=_environment(storage_seconds))
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        lines = str(error).strip().splitlines()
        raise ResourceError(
            f"no Ray cluster answers at {address!r}: {lines[0] if lines else type(error).__name__}\n"
            "Check --address (or RAY_ADDRESS), and RAY_AUTH_MODE=token if the cluster asks for a token"
        ) from error


def _environment(storage_seconds: float) -> dict[str, dict[str, str]] | None:
    """What the job's processes on a cluster are to know; nothing for what they know by default, since processes with
    an environment of their own start later. A local Ray inherits the driver's variables."""
    if storage_seconds == storage.PATIENCE_SECONDS:
        return None
    return {"env_vars": {storage.PATIENCE: f"{storage_seconds:g}"}}


def _knock(address: str) -> None:
    """Raises OSError where nobody listens at host:port: Ray itself would try for a quarter of an hour."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()


def disconnect() -> None:
    """Leave the cluster; a Ray that was started here ends, with all its processes."""
    global _opened
    ray.shutdown()
    _opened = False
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = CLUSTERS_ENABLED
    for name, value in _of_local_ray.items():
        if os.environ.get(name) == value:
            del os.environ[name]
    _of_local_ray.clear()
