"""Fixtures that several tests share: made videos, and real servers."""

from __future__ import annotations

import functools
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

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
# Processes of tests that run side by side share the cores already.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
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
from tpn_ray import session, storage  # noqa: E402
from tpn_ray.datasets.toy import ToyConfig, write_toy  # noqa: E402
from tpn_ray.videos.encode import EncodeConfig  # noqa: E402


@pytest.fixture(autouse=True)
def ordinary_scheduling() -> Iterator[None]:
    """No test leaves this process a real-time one, which would starve all that later tests start."""
    yield
    assert not hasattr(os, "sched_getscheduler") or os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.fixture(scope="module", autouse=True)
def no_setting_left() -> Iterator[None]:
    """No module leaves the address of a Ray that is gone, which later jobs would try to join, or short patience."""
    yield
    assert "RAY_ADDRESS" not in os.environ
    assert storage.patience_seconds() >= storage.PATIENCE_SECONDS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files that start Ray first: they take longest, and the others fill what is left of the time."""
    slow = {item.path for item in items if item.get_closest_marker("cluster")}
    items.sort(key=lambda item: (not asks_for_the_cluster(item.path), item.path not in slow))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Let one process run a whole file, and all the files that use the one Ray cluster."""
    return ByFileAndCluster(config, log)


class ByFileAndCluster(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out files, and those that use the cluster together. (xdist's own groups need an older pytest.)"""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "cluster" if asks_for_the_cluster(Path(str(self.config.rootpath), file)) else file


@functools.cache
def asks_for_the_cluster(path: Path) -> bool:
    """Whether tests in this file use the fixtures `cluster` or `joined`."""
    return re.search(r"\bcluster: RayHead\b|\bjoined\b", path.read_text()) is not None


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
