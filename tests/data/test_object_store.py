"""The object store's use by a slow consumer of clips, on a Ray of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from tests.data.test_dataset import source_of
from tests.videos import videos
from tpn_ray.clips import rows
from tpn_ray.clips.sampling import ClipConfig
from tpn_ray.data import dataset
from tpn_ray.data.plan import Plan
from tpn_ray.data.tasks import ClipSource
from tpn_ray.resources import Decoding

pytestmark = [pytest.mark.cluster, pytest.mark.long]

STORE_BYTES = 200 * 1024**2
SHARE = 0.65
"""Of the object store at most: Ray Data takes half of it, and what a consumer holds comes on top."""


@pytest.fixture(scope="module")
def small_store() -> Iterator[None]:
    """A local Ray with a small object store."""
    ray.init(address="local", num_cpus=3, object_store_memory=STORE_BYTES, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def four_videos(folder: Path) -> ClipSource:
    """Clips of 0.3 MB each."""
    data = videos.encode(frames=20, size=(112, 112), options={"preset": "ultrafast"})
    for name in ("a/1", "a/2", "b/1", "b/2"):
        (folder / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "train" / f"{name}.mp4").write_bytes(data)
    return source_of(folder, ClipConfig(frames=8, stride_frames=1), 112)


def test_a_slow_consumer_spills_nothing(small_store: None, tmp_path: Path) -> None:
    """Three times the object store goes through it, and no more than a share of it is ever used."""
    source = four_videos(tmp_path)
    plan = Plan(samples=4, seed=0, epochs=500, batch_clips=4, micro_batch_clips=4)
    clips = dataset.training_clips(ray.put(source), plan, 1, 0, Decoding())
    (shard,) = clips.streaming_split(1, equal=True)
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    most = seen = 0
    for batch in shard.iter_batches(batch_size=4, prefetch_batches=2):
        seen += batch[rows.CLIP].nbytes
        time.sleep(0.02)
        store = get_memory_info_reply(state).store_stats
        most = max(most, store.object_store_bytes_used)
        assert store.spilled_bytes_total == 0
    assert seen == 2000 * 8 * 112 * 112 * 3
    assert seen > 2.5 * STORE_BYTES
    assert most < SHARE * STORE_BYTES, f"{most / STORE_BYTES:.2f} of the object store"


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def rounds_while_clips_wait(source: ClipSource, plan: Plan) -> list[float]:
    """When Ray Data looked for something to do, in the last seconds of a consumer that takes nothing.

    In a process of its own: Ray Data's threads live on for a while, and must not meet the end of the tests' Ray.
    """
    rounds, paced = list[float](), dataset.Pace.on_execution_step

    def counted(self: dataset.Pace, executor: object) -> None:
        rounds.append(time.monotonic())
        paced(self, executor)

    dataset.Pace.on_execution_step = counted  # type: ignore[method-assign, assignment]
    clips = dataset.training_clips(ray.put(source), plan, 1, 0, Decoding())
    for _ in clips.iter_batches(batch_size=4):
        time.sleep(12.0)
        break
    return [at for at in rounds if at > rounds[-1] - 4.0]


def test_scheduling_does_not_spin_while_clips_wait(small_store: None, tmp_path: Path) -> None:
    """When the share of the object store is full of clips, nothing is left to wait for."""
    plan = Plan(samples=4, seed=0, epochs=500, batch_clips=4, micro_batch_clips=4)
    late = ray.get(rounds_while_clips_wait.remote(four_videos(tmp_path), plan), timeout=120)
    assert len(late) > 10
    assert (len(late) - 1) / (late[-1] - late[0]) < 60
