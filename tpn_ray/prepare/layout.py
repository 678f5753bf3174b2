"""Which videos go into which shard, and the settings a dataset is made with. Pure; runs anywhere.

A shard holds random videos of one split, so that a row group is a random sample and training can shuffle groups. The
order is by hashes of names: the same on every machine, for any cluster size. Segments of one long video stay together,
so that the video is fetched once or twice rather than once per segment.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from tpn_ray import storage
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.datasets.shards import FORMAT
from tpn_ray.errors import ConfigError
from tpn_ray.sandbox.process import SandboxLimits
from tpn_ray.videos.encode import EncodeConfig
from tpn_ray.videos.source_frames import Segment


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """How many videos one task prepares and one file holds."""

    shard_mb: int = 128
    """Maximum size of the source files of a shard, in MB (segments of longer videos count only toward shard_videos)."""

    shard_videos: int = 256
    """Maximum number of videos in a shard."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ConfigError(f"{field.name} is {getattr(self, field.name)}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """One shard to make."""

    name: str
    split: str
    rows: tuple[int, ...]
    """Rows of the manifest, in the order of the shard."""


def plan_shards(manifest: Manifest, config: ShardConfig) -> list[ShardPlan]:
    """Assign every row of the manifest to one shard of its split."""
    plans = []
    for split in sorted(set(manifest.splits)):
        rows = [row for row, value in enumerate(manifest.splits) if value == split]
        rows.sort(key=lambda row: _place(manifest, row))
        for number, part in enumerate(_parts(rows, manifest, config)):
            plans.append(ShardPlan(name=f"{split}-{number:05d}.parquet", split=split, rows=tuple(part)))
    return plans


def _place(manifest: Manifest, row: int) -> tuple[bytes, float, str]:
    segment = segment_of(manifest, row)
    name = storage.name(manifest.uris[row]) if segment else manifest.ids[row]
    return hashlib.sha256(name.encode()).digest(), segment.start_seconds if segment else 0.0, manifest.ids[row]


def _parts(rows: list[int], manifest: Manifest, config: ShardConfig) -> list[list[int]]:
    parts: list[list[int]] = []
    held = 0
    for row in rows:
        size = 0 if segment_of(manifest, row) else max(0, int(manifest.sizes_bytes[row]))
        if not parts or len(parts[-1]) == config.shard_videos or held + size > config.shard_mb * 1024**2:
            parts.append([])
            held = 0
        parts[-1].append(row)
        held += size
    return parts


def segment_of(manifest: Manifest, row: int) -> Segment | None:
    """Return the part of its file that a row stands for; None for the whole file."""
    if manifest.segments_seconds is None:
        return None
    start, end = manifest.segments_seconds[row].tolist()
    return None if start != start else Segment(start, end)  # NaN: a whole file


def settings_of(manifest: Manifest, encode: EncodeConfig, limits: SandboxLimits, shards: ShardConfig) -> dict[str, Any]:
    """Return everything that determines the bytes of a dataset, as JSON values. It travels with the dataset."""
    values = dataclasses.asdict(encode)
    return {
        "source_version": manifest.version,
        # Without flow, as before there was any: such a dataset stays resumable.
        "encode": {name: value for name, value in values.items() if encode.flow or not name.startswith("flow")},
        "limits": dataclasses.asdict(limits),
        "shards": dataclasses.asdict(shards),
    }


def settings_hash(settings: dict[str, Any]) -> str:
    """Return 16 hexadecimal digits by which a shard knows whether it belongs to these settings."""
    return hashlib.sha256(json.dumps([FORMAT, settings], sort_keys=True).encode()).hexdigest()[:16]


def difference(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return the differences between two settings, one line per value."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += [f"{name}.{line}" for line in difference(before, after)]
        elif before != after:
            lines.append(f"{name}: {before!r} then, {after!r} now")
    return lines
