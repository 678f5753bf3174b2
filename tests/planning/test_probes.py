from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tpn_ray import recipes
from tpn_ray.data.plan import Plan
from tpn_ray.data.tasks import ClipSource
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.planning import probes
from tpn_ray.videos.encode import EncodeConfig


@pytest.fixture
def source(toy_folder: Path) -> ClipSource:
    recipe, manifest = recipes.toy(), load_manifest(str(toy_folder)).select("train")
    return ClipSource(manifest=manifest, clip=recipe.clip, augment=recipe.augment, seed=0)


def test_decoding(source: ClipSource) -> None:
    plan = Plan(samples=32, seed=0, epochs=4, batch_clips=16, micro_batch_clips=16)
    decoded = probes.decode(source, plan, 0.0)
    assert decoded.seconds_per_block > 0
    assert decoded.bad_videos == 0
    pixels = 32 * 16 * 48 * 48 * 3
    assert pixels < decoded.block_bytes < 1.1 * pixels
    assert decoded.peak_bytes > decoded.block_bytes


def test_a_step() -> None:
    stepped = probes.step(recipes.toy(), "cpu", threads=1, rounds=3)
    assert 0 < stepped.clips_per_second.low <= stepped.clips_per_second.middle <= stepped.clips_per_second.high
    assert stepped.score_clips_per_second > 0
    assert stepped.peak_bytes > 1e7
    assert stepped.peak_gpu_bytes == 0


def test_preparing_is_tried_on_some_videos(source: ClipSource) -> None:
    found = probes.prepare_some(source, EncodeConfig(short_side_px=48), 0.0)
    assert found is not None
    assert found.videos == 1
    assert found.speedup.low == found.speedup.high > 0
    assert 0 < found.bytes_share < 10
    assert found.core_seconds_per_video.middle > 0


def test_videos_that_cannot_be_used_are_passed_over(source: ClipSource, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video " * 100)
    uris = [str(tmp_path / "text.mp4")] * len(source.manifest)
    broken = dataclasses.replace(source, manifest=dataclasses.replace(source.manifest, uris=uris))
    assert probes.prepare_some(broken, EncodeConfig(), 60.0) is None
