"""Fixtures that several tests share: made videos, and real servers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
from hypothesis import HealthCheck, settings

import tests.typecheck  # noqa: F401 - the hook finds it by name

# Before anything of the project is imported: shapes and types in signatures are checked while testing.
CHECKED = (
    *("clips.cut", "clips.develop", "metrics", "model"),
    *("tempo.fwhm", "tempo.gain", "training.loss", "training.step"),
)
jaxtyping.install_import_hook([f"tpn_ray.{module}" for module in CHECKED], "tests.typecheck.checked")
# A busy machine is no failure: properties are checked, not how long it takes.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
# Threads of torch that wait for each other sleep: on a busy machine, waiting busily takes the time they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# What a shell starts with & ignores Ctrl-C, and so would every job that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.pop("RAY_ADDRESS", None)
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = "0123456789abcdef" * 4
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"

from tests.prepared import prepare  # noqa: E402
from tests.ray_head import RayHead, ray_head  # noqa: E402
from tests.servers import S3Server, mlflow_server, s3_server  # noqa: E402
from tpn_ray import session  # noqa: E402
from tpn_ray.datasets.toy import ToyConfig, write_toy  # noqa: E402
from tpn_ray.videos.encode import EncodeConfig  # noqa: E402


@pytest.fixture(autouse=True)
def ordinary_scheduling() -> Iterator[None]:
    """No test leaves this process a real-time one, which would starve all that later tests start."""
    yield
    assert not hasattr(os, "sched_getscheduler") or os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.fixture(scope="module", autouse=True)
def no_address_left() -> Iterator[None]:
    """No module leaves the address of a Ray that is gone, which later jobs would try to join."""
    yield
    assert "RAY_ADDRESS" not in os.environ


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group tests for the processes that share them: those of a file, and all files that use the one Ray cluster.

    Files that start Ray come first: they take longest, and the others fill what is left of the time.
    """
    slow = {item.path for item in items if item.get_closest_marker("cluster")}
    together = {item.path for item in items if "cluster" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: (item.path not in together, item.path not in slow))
    for item in items:
        group = "cluster" if item.path in together else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 training and 16 validation videos of the toy dataset."""
    folder = tmp_path_factory.mktemp("toy")
    write_toy(str(folder), ToyConfig(train_per_class=4, val_per_class=2))
    return folder


@pytest.fixture(scope="session")
def flow_dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight training and eight validation videos of the toy dataset, shortened and prepared with optical flow."""
    videos, folder = tmp_path_factory.mktemp("short"), tmp_path_factory.mktemp("flow")
    write_toy(str(videos), ToyConfig(train_per_class=1, val_per_class=1, frames=40))
    return prepare(videos, folder, EncodeConfig(flow=True, preset="veryfast"))


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3-compatible server."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.fixture(scope="session")
def cluster(s3: S3Server) -> Iterator[RayHead]:
    """A Ray cluster of one node that many jobs join, one after the other."""
    with ray_head(8, s3.environment) as head:
        yield head


@pytest.fixture(scope="module")
def joined(cluster: RayHead, s3: S3Server) -> Iterator[None]:
    """This process is a driver on the cluster, and reaches the S3 server too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        session.connect(cluster.address, workers_cpus=2, decode_cpus=1)
        yield
        session.disconnect()
