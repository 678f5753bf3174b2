"""A job on a cluster that begins with nothing, grows, has nodes taken away, and ends with nothing: the same weights.

How far the run gets is set by what the cloud has to give, never by time: without nodes that decode it stands still.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from ray.util.state import list_actors, list_tasks

from tests.cluster.fake_cloud import AutoscalingHead, NodeType, autoscaling_head
from tests.cluster.submitted import Submitted
from tests.ray_head import BIN
from tests.training.undisturbed import check_same_bits, undisturbed
from tpn_ray import recipes
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.recipe import replace_fields
from tpn_ray.training import order_ledger
from tpn_ray.training.run_plan import make_plan, recipe_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3000)]

EPOCHS = 40
FIELDS = {
    "loop.epochs": EPOCHS,
    "loop.evaluate_every_epochs": EPOCHS,
    "loop.batch_clips": 8,
    "loop.micro_batch_clips": 4,
    "loop.ordered_reduction": True,
}
NODE_TYPES = {
    "decoding": NodeType({"CPU": 2}, {"pool": "cpu"}, 1),
    "training": NodeType({"CPU": 2, "accelerator": 1}, {"pool": "gpu"}, 2),
}
NOTICE_SECONDS = 600
"""More than the test needs until it takes the node."""
FLAGS = ["--workers", "2", "--min-workers", "1", "--may-grow", "--resize-seconds", "3"]
FLAGS += ["--worker-resources", "accelerator=1", "--decode-on", "pool=cpu"]
FLAGS += ["--saving.every-seconds", "0", "--saving.every-steps", "20"]


@pytest.mark.long
def test_a_run_follows_the_nodes(toy_folder: Path, tmp_path: Path) -> None:
    manifest = load_manifest(str(toy_folder))
    recipe = recipe_for(replace_fields(recipes.toy(), FIELDS), manifest)
    with autoscaling_head(tmp_path, NODE_TYPES, training=1, decoding=1) as cloud:
        flags = ["--data", str(toy_folder), "--storage", str(tmp_path / "runs"), *FLAGS]
        # Not uploaded: nodes of one machine would unpack it over each other.
        job = Submitted(cloud.head, "grown", tmp_path / "ledger", flags, FIELDS, upload=False)
        job.wait_for("steps of one worker", lambda: job.trained() >= 4)

        cloud.set_capacity(training=2, decoding=0)
        job.wait_for("a second worker", lambda: "with 2 workers" in job.output())
        cloud.set_capacity(training=2, decoding=1)
        job.wait_for("steps of the second worker", lambda: job.trained("*-0001") >= 4)

        cloud.set_capacity(training=2, decoding=0)
        lost = node_of_rank_0(job)
        give_notice(cloud, lost)
        cloud.set_capacity(training=2, decoding=1)
        job.wait_for("a checkpoint just in time", lambda: "taking 1 node(s) of this run away" in job.output())
        cloud.set_capacity(lost, training=1, decoding=0)
        alone = undisturbed(recipe, manifest)
        job.wait_for("a run of one worker", lambda: len(job.starts()) == 3)
        trained = job.trained()
        cloud.set_capacity(training=1, decoding=1)
        job.wait_for("its steps", lambda: job.trained() > trained)
        job.wait_for("the end", lambda: job.status() == "SUCCEEDED")
        check_who_did_what(job)
        starts, output = job.starts(), job.output()
        job.wait_for("the nodes to go away", lambda: job.alive("cpu", "gpu") == [])

    assert [start.partition(" with ")[2].split()[0] for start in starts] == ["1", "2", "1"], output
    plan = make_plan(recipe, manifest)
    assert order_ledger.check(str(tmp_path / "ledger"), plan) == []
    check_same_bits(alone, f"{tmp_path}/runs/grown/step-{plan.steps:08d}")
    assert "(raylet)" not in output, "what Ray has to say of lost nodes is not for the user"


def check_who_did_what(job: Submitted) -> None:
    """By Ray's own records: every clip was decoded on a node for that, and trained on one for that."""
    pools = {node: pool for node, (pool, _) in job.nodes().items()}
    tasks = list_tasks(job.head.jobs_url, limit=10_000, detail=True, filters=[("state", "=", "FINISHED")])
    decoded = [pools[task.node_id] for task in tasks if "decode" in task.name]
    assert len(decoded) > 10 and set(decoded) == {"cpu"}, decoded
    workers = list_actors(job.head.jobs_url, limit=1_000, detail=True)
    trained = [pools[actor.node_id] for actor in workers if "RayTrainWorker" in actor.class_name and actor.node_id]
    assert len(trained) >= 4 and set(trained) == {"gpu"}, trained


def node_of_rank_0(job: Submitted) -> str:
    """It holds what hands the clips out, and more is lost with it."""
    filters = [("class_name", "=", "SplitCoordinator"), ("state", "=", "ALIVE")]
    (found,) = list_actors(job.head.jobs_url, detail=True, filters=filters)
    return str(found.node_id)


def give_notice(cloud: AutoscalingHead, node: str) -> None:
    """What a cloud does before it takes a spot node."""
    command = [str(BIN / "ray"), "drain-node", "--address", cloud.head.address, "--node-id", node]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    command += ["--deadline-remaining-seconds", str(NOTICE_SECONDS)]
    subprocess.run(command, check=True, capture_output=True, timeout=120, env=cloud.head.environment)
