"""Which videos go into which shard, and how settings are told apart; how many bad videos are borne."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from tpn_ray.datasets.entries import Entry
from tpn_ray.datasets.manifest import Manifest, build
from tpn_ray.errors import ConfigError
from tpn_ray.prepare.layout import (
    ShardConfig,
    difference,
    plan_shards,
    segment_of,
    settings_hash,
    settings_of,
)
from tpn_ray.sandbox.process import SandboxLimits
from tpn_ray.videos.encode import EncodeConfig
from tpn_ray.videos.source_frames import Segment


def manifest_of(folder: str, classes: int = 10, videos: int = 20, size: int = 1024**2) -> Manifest:
    entries = [
        Entry(f"{c}/{v}.mp4", f"{folder}/{c}/{v}.mp4", (str(c),), "train" if v else "val")
        for c in range(classes)
        for v in range(videos)
    ]
    return build(entries, {entry.uri: size for entry in entries}, source="test")


def test_every_video_is_in_one_shard_of_its_split() -> None:
    manifest = manifest_of("/a")
    plans = plan_shards(manifest, ShardConfig(shard_mb=30))
    assert sorted(row for plan in plans for row in plan.rows) == list(range(200))
    assert [plan.name for plan in plans[-2:]] == ["train-00006.parquet", "val-00000.parquet"]
    assert all({manifest.splits[row] for row in plan.rows} == {plan.split} for plan in plans)
    assert [len(plan.rows) for plan in plans] == [30] * 6 + [10, 10]
    assert max(len(plan.rows) for plan in plan_shards(manifest, ShardConfig(shard_videos=7))) == 7
    assert plan_shards(manifest_of("s3://b/elsewhere"), ShardConfig(shard_mb=30)) == plans, "the place is no matter"


def test_a_shard_holds_random_videos() -> None:
    manifest = manifest_of("/a", classes=10, videos=101)
    for plan in plan_shards(manifest, ShardConfig(shard_mb=100))[:10]:
        counts = np.bincount(manifest.labels[list(plan.rows), 0], minlength=10)
        assert counts.min() >= 1
        assert counts.max() <= 25


def test_segments_of_a_video_stay_together_in_order() -> None:
    entries = [
        Entry(f"v{v}_{s}", f"/a/v{v}.mp4", ("x",), "train", (float(s), s + 1.0)) for s in range(12) for v in range(5)
    ]
    manifest = build(entries, {entry.uri: 10**10 for entry in entries}, source="test")
    (plan,) = plan_shards(manifest, ShardConfig())
    uris = [manifest.uris[row] for row in plan.rows]
    assert sum(one != other for one, other in itertools.pairwise(uris)) == 4
    assert [segment_of(manifest, row) for row in plan.rows[:12]] == [Segment(float(s), s + 1.0) for s in range(12)]


def test_settings_decide_what_a_shard_belongs_to(tmp_path: Path) -> None:
    manifest = manifest_of("/a")
    one = settings_of(manifest, EncodeConfig(), SandboxLimits(), ShardConfig())
    two = settings_of(manifest, EncodeConfig(crf=20), SandboxLimits(), ShardConfig())
    assert settings_hash(one) == settings_hash(settings_of(manifest, EncodeConfig(), SandboxLimits(), ShardConfig()))
    assert settings_hash(one) != settings_hash(two)
    assert difference(one, two) == ["encode.crf: 23.0 then, 20 now"]
    with pytest.raises(ConfigError, match="shard_mb is 0"):
        ShardConfig(shard_mb=0)
