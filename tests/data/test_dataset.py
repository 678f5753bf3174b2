"""The plan through Ray Data: the order, and a start in the middle."""

from __future__ import annotations

import random
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
import ray

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


def test_what_is_kept_of_blocks_is_dropped(toy_folder: Path, joined: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a long run's memory would grow with every block."""
    kept, forget = list[int](), dataset.Forget.on_execution_step

    def counted(self: dataset.Forget, executor: Any) -> None:
        each = [
            vars(operator)[dataset.KEPT_OF_BLOCKS] for operator in executor._topology if operator.input_dependencies
        ]
        kept.append(max(map(len, each)))
        forget(self, executor)

    monkeypatch.setattr(dataset.Forget, "on_execution_step", counted)
    source = ray.put(source_of(toy_folder, ClipConfig(frames=2, stride_frames=2), 32))
    plan = Plan(samples=32, seed=5, epochs=12, batch_clips=32, micro_batch_clips=32)
    blocks = sum(1 for _ in dataset.training_clips(source, plan, 1, 0, Decoding()).iter_batches(batch_size=None))
    assert blocks == plan.blocks(1) == 12
    assert 0 < max(kept) < 8, "some in a round, never all"


def test_each_rank_gets_its_slots_from_any_step(toy_folder: Path, joined: None) -> None:
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
