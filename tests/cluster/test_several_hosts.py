"""A job on hosts with addresses of their own, one of which is cut off while it trains: the same weights.

Nothing is told to anybody: packets to and from the host are lost, as with a host that has no power any more.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import Host, connected_hosts, why_not
from tests.cluster.submitted import Submitted
from tests.ray_head import BIN, RayHead, ray_head
from tests.servers import S3Server, s3_server
from tests.training.undisturbed import check_same_bits, undisturbed
from tpn_ray import recipes, storage
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.datasets.toy import ToyConfig, write_toy
from tpn_ray.recipe import replace_fields
from tpn_ray.training import order_ledger
from tpn_ray.training.run_plan import make_plan, recipe_for

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(3000)]

FIELDS = {
    "loop.epochs": 24,
    "loop.evaluate_every_epochs": 24,
    "loop.batch_clips": 8,
    "loop.micro_batch_clips": 4,
    "loop.ordered_reduction": True,
}
STORE_BYTES = 100 * 1024**2


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """The head's, from where the test looks on, and two workers'."""
    if why_not():
        pytest.skip(f"this machine cannot make network namespaces: {why_not()}")
    with connected_hosts(3) as made, made[0].here():
        yield made


@pytest.fixture
def store(hosts: list[Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server(tmp_path / "s3", ip=hosts[0].address) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def head(hosts: list[Host], store: S3Server) -> Iterator[RayHead]:
    """The first host as a head that computes nothing, the others as nodes of three CPUs."""
    with ray_head(0, store.environment, ip=hosts[0].address) as made:
        for host in hosts[1:]:
            command = [str(BIN / "ray"), "start", f"--address={made.address}", f"--node-ip-address={host.address}"]
            command += ["--num-cpus=3", f"--object-store-memory={STORE_BYTES}", f"--labels=pool={host.name}"]
            command += ["--disable-usage-stats", f"--temp-dir={made.folder}/{host.name}"]
            joined = subprocess.run(
                host.command(*command), check=False, env=made.environment, capture_output=True, text=True, timeout=240
            )
            assert joined.returncode == 0, joined.stdout + joined.stderr
        yield made


def test_a_host_is_cut_off(hosts: list[Host], head: RayHead, store: S3Server, tmp_path: Path) -> None:
    data, runs = f"s3://{store.bucket}/toy", f"s3://{store.bucket}/runs"
    write_toy(data, ToyConfig(train_per_class=4, val_per_class=2))
    manifest = load_manifest(data)
    recipe = recipe_for(replace_fields(recipes.toy(), FIELDS), manifest)
    flags = ["--data", data, "--storage", runs]
    # A worker and its decoding fill a host.
    flags += ["--workers", "2", "--min-workers", "1", "--cpus-per-worker", "1.9", "--saving.every-steps", "2"]
    job = Submitted(head, "hosts", tmp_path / "ledger", flags, FIELDS, upload=True)
    alone = undisturbed(recipe, manifest)
    job.wait_for("steps of both workers", lambda: job.trained("*-0000") >= 6 and job.trained("*-0001") >= 6)

    hosts[2].cut_off()
    seconds = job.wait_for("a run of one worker", lambda: "with 1 workers" in job.output())
    assert job.alive("host2", "host3") == job.alive("host2")
    job.wait_for("the end", lambda: job.status() == "SUCCEEDED")

    plan, starts = make_plan(recipe, manifest), job.starts()
    assert len(starts) == 2 and "with 2 workers" in starts[0] and "resumed from step" in starts[1], job.output()
    assert order_ledger.check(str(tmp_path / "ledger"), plan) == []
    check_same_bits(alone, f"{runs}/hosts/step-{plan.steps:08d}")
    assert storage.exists(f"{runs}/hosts/scores.parquet")
    print(f"the run stood still for {seconds:.0f} s")
