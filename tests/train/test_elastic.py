"""A node is taken away while a run trains on it: a checkpoint just in time, fewer workers, the same weights."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from tests.ray_head import BIN
from tpn_ray import checkpoint as checkpoints
from tpn_ray import recipes, session
from tpn_ray.clips.manifest import Manifest, load_manifest
from tpn_ray.data import rows
from tpn_ray.data.worker import ClipSource, training_rows
from tpn_ray.train import driver, order_ledger
from tpn_ray.train.driver import Machines
from tpn_ray.train.events import Event, Notice, Started
from tpn_ray.train.recipe import Recipe, replace_fields
from tpn_ray.train.saving import Saving
from tpn_ray.train.step import MicroBatch, Training

pytestmark = [pytest.mark.cluster, pytest.mark.long]

FIELDS = {
    "loop.epochs": 24,
    "loop.evaluate_every_epochs": 24,
    "loop.batch_clips": 8,
    "loop.micro_batch_clips": 4,
    "loop.ordered_reduction": True,
}
ON_EACH_NODE = Machines(workers=2, min_workers=1, cpus_per_worker=1.9)
"""A node of three CPUs takes one worker, of one thread, and its decoding, not two workers."""
DRAIN_SECONDS = 8


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that computes nothing, and two nodes."""
    before = os.environ.pop("RAY_ADDRESS", None)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 150 * 1024**2})
    try:
        for _ in range(2):
            made.add_node(num_cpus=3, object_store_memory=150 * 1024**2)
        os.environ["RAY_ADDRESS"] = made.address
        session.connect(made.address, workers_cpus=0, decode_cpus=0)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
        os.environ.pop("RAY_ADDRESS", None)
        if before is not None:
            os.environ["RAY_ADDRESS"] = before


@pytest.fixture(scope="module")
def manifest(toy_folder: Path) -> Manifest:
    return load_manifest(str(toy_folder))


@pytest.fixture(scope="module")
def recipe(manifest: Manifest) -> Recipe:
    return driver.recipe_for(replace_fields(recipes.toy(), FIELDS), manifest)


def train(recipe: Recipe, manifest: Manifest, folder: Path, name: str, machines: Machines, events: list[Event]) -> None:
    driver.run(
        recipe,
        manifest,
        machines,
        storage_uri=str(folder),
        name=name,
        on_event=events.append,
        saving=Saving(every_seconds=0),
        max_failures=0,
        order_ledger=str(folder / f"{name}-ledger"),
    )


def without_ray(recipe: Recipe, manifest: Manifest) -> Training:
    """The same run in this process, in plain torch; sums inside an operation depend on the number of threads."""
    torch.set_num_threads(int(ON_EACH_NODE.cpus_per_worker))
    alone, plan = (
        Training(recipe.model, recipe.loss, recipe.optim, recipe.loop, "cpu"),
        driver.make_plan(recipe, manifest),
    )
    source = ClipSource(manifest=manifest.select("train"), clip=recipe.clip, augment=recipe.augment, seed=0)
    for step in range(plan.steps):
        micro_batches = []
        for number in range(plan.micro_batches_per_step):
            made = training_rows(source, [plan.slot(number, 1, step)])
            clips, labels = torch.tensor(made[rows.CLIP]), torch.tensor(made[rows.LABELS])
            micro_batches.append(MicroBatch(number, clips, labels))
        alone.train_step(micro_batches, plan.steps)
    return alone


def trained(ledger: Path) -> int:
    """Micro-batches so far; the first line of each file is none."""
    return sum(len(path.read_text().splitlines()) - 1 for path in ledger.glob("*.jsonl"))


def take_away(cluster: Cluster, node_id: str) -> None:
    """What a cloud does to a spot node: a notice, and some seconds later it is gone."""
    command = [str(BIN / "ray"), "drain-node", "--address", cluster.address, "--node-id", node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    command += ["--deadline-remaining-seconds", str(DRAIN_SECONDS)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    time.sleep(DRAIN_SECONDS)
    (node,) = (node for node in cluster.worker_nodes if node.node_id == node_id)
    cluster.remove_node(node, allow_graceful=False)


def test_a_node_that_is_taken_away(cluster: Cluster, recipe: Recipe, manifest: Manifest, tmp_path: Path) -> None:
    events: list[Event] = []
    given = (recipe, manifest, tmp_path, "shrunk", ON_EACH_NODE, events)
    running = threading.Thread(target=train, args=given, daemon=True)
    running.start()
    deadline = time.monotonic() + 200
    while trained(tmp_path / "shrunk-ledger") < 6:
        assert time.monotonic() < deadline and running.is_alive()
        time.sleep(0.1)
    mine = ray.get_runtime_context().get_node_id()  # the driver is on any of them: they have one address
    take_away(cluster, next(node.node_id for node in cluster.worker_nodes if node.node_id != mine))
    running.join(timeout=200)
    assert not running.is_alive()
    starts = [event for event in events if isinstance(event, Started)]
    assert [start.workers for start in starts] == [2, 1]
    assert any(isinstance(event, Notice) and "takes 1 node(s) of this run away" in event.text for event in events)
    assert starts[1].step > 0, "the checkpoint just in time is the only one there is: none is due by time or steps"
    plan = driver.make_plan(recipe, manifest)
    assert order_ledger.check(str(tmp_path / "shrunk-ledger"), plan) == []
    saved = checkpoints.load(f"{tmp_path}/shrunk/step-{plan.steps:08d}")
    alone = without_ray(recipe, manifest)
    assert all(torch.equal(tensor, saved.weights[name]) for name, tensor in alone.model.state_dict().items())
    momenta = [state["optimizer"]["state"] for state in (saved.training, alone.state()[1])]
    assert all(torch.equal(momenta[0][p]["momentum_buffer"], momenta[1][p]["momentum_buffer"]) for p in momenta[0])
