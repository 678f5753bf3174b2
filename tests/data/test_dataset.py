"""The plan through Ray Data: the order, a start in the middle, and the object store's use by a slow consumer."""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from tests.videos import videos
from tpn_ray import storage
from tpn_ray.clips import rows
from tpn_ray.clips.augment import AugmentConfig
from tpn_ray.clips.sampling import ClipConfig
from tpn_ray.data import dataset
from tpn_ray.data.plan import Plan
from tpn_ray.data.tasks import ClipSource
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.resources import Decoding

pytestmark = pytest.mark.cluster

STORE_BYTES = 200 * 1024**2
SHARE = 0.65
"""Of the object store at most: Ray Data takes half of it, and what a consumer holds comes on top."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A local Ray with a small object store."""
    ray.init(address="local", num_cpus=3, object_store_memory=STORE_BYTES, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_a_dataset_outwaits_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    context = ray.data.DataContext.get_current()
    monkeypatch.setattr(context, "execution_no_progress_timeout_s", 0)
    monkeypatch.setenv(storage.PATIENCE, "120")
    dataset.configure_context(patience_seconds=300)
    assert context.execution_no_progress_timeout_s == 420


def source_of(folder: Path, clip: ClipConfig, crop_px: int) -> ClipSource:
    manifest = load_manifest(str(folder)).select("train")
    augment = AugmentConfig(crop_px=crop_px, test_short_side_px=crop_px)
    return ClipSource(manifest=manifest, clip=clip, augment=augment, seed=0)


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def consume(shard: Any, micro_batch_clips: int, most_seconds: float) -> list[tuple[list[int], int]]:
    """(positions, checksum of the pixels) of every micro-batch that a rank gets, taken at an uneven pace."""
    seen = []
    for batch in shard.iter_batches(batch_size=micro_batch_clips, prefetch_batches=2):
        seen.append((batch[rows.POSITION].tolist(), zlib.crc32(batch[rows.CLIP])))
        time.sleep(random.random() * most_seconds)
    return seen


def stream(source: Any, plan: Plan, workers: int, first_step: int) -> list[list[tuple[list[int], int]]]:
    """What each rank gets."""
    clips = dataset.training_clips(source, plan, workers, first_step, Decoding())
    shards = clips.streaming_split(workers, equal=True)
    tasks = [consume.remote(shard, plan.micro_batch_clips, 0.02) for shard in shards]
    ranks: list[list[tuple[list[int], int]]] = ray.get(tasks, timeout=120)
    return ranks


def test_each_rank_gets_its_slots_from_any_step(toy_folder: Path, cluster: None) -> None:
    """With two clips of each video; with one, the tests of training and survival see the same."""
    clip = ClipConfig(frames=4, stride_frames=2, clips_per_video=2)
    source = ray.put(source_of(toy_folder, clip, 32))
    plan = Plan(samples=32, seed=5, epochs=5, batch_clips=6, micro_batch_clips=2, clips_per_video=2)
    whole = stream(source, plan, 2, 0)
    for rank, got in enumerate(whole):
        slots = [plan.slot(index, 2) for index in range(rank, plan.slots(2), 2)]
        assert [positions for positions, _ in got] == [slot.positions.tolist() for slot in slots]
    first_step = plan.steps // 2 + 1
    rest = stream(source, plan, 2, first_step)
    skipped = first_step * plan.slots_per_step(2) // 2
    assert rest == [got[skipped:] for got in whole], "the same clips, bit for bit"
    alone = {position: crc for positions, crc in stream(source, plan, 1, first_step)[0] for position in positions[:1]}
    shared = {position: crc for got in rest for positions, crc in got for position in positions[:1] if position >= 0}
    assert alone == shared, "whatever the number of workers"


def four_videos(folder: Path) -> ClipSource:
    """Clips of 0.3 MB each."""
    data = videos.encode(frames=20, size=(112, 112), options={"preset": "ultrafast"})
    for name in ("a/1", "a/2", "b/1", "b/2"):
        (folder / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "train" / f"{name}.mp4").write_bytes(data)
    return source_of(folder, ClipConfig(frames=8, stride_frames=1), 112)


@pytest.mark.long
def test_a_slow_consumer_spills_nothing(cluster: None, tmp_path: Path) -> None:
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


@pytest.mark.long
def test_scheduling_does_not_spin_while_clips_wait(cluster: None, tmp_path: Path) -> None:
    """When the share of the object store is full of clips, nothing is left to wait for."""
    plan = Plan(samples=4, seed=0, epochs=500, batch_clips=4, micro_batch_clips=4)
    late = ray.get(rounds_while_clips_wait.remote(four_videos(tmp_path), plan), timeout=120)
    assert len(late) > 10
    assert (len(late) - 1) / (late[-1] - late[0]) < 60
