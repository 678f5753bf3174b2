"""Datasets prepared in this process, without Ray."""

from __future__ import annotations

from pathlib import Path

from tpn_ray import storage
from tpn_ray.datasets import shards
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.prepare.layout import ShardConfig, plan_shards
from tpn_ray.prepare.shard_maker import PrepareJob, make_shard
from tpn_ray.sandbox.process import SandboxLimits
from tpn_ray.storage import StoredFile
from tpn_ray.videos.encode import EncodeConfig


def prepare(source: Path, folder: Path, encode: EncodeConfig) -> str:
    """Make every shard and the dataset of them, as jobs/prepare.py does, and return its folder."""
    manifest = load_manifest(str(source))
    plans = plan_shards(manifest, ShardConfig())
    job = PrepareJob(
        manifest=manifest,
        shards=plans,
        encode=encode,
        limits=SandboxLimits(),
        folder=str(folder),
        settings_hash="x",
    )
    made = {}
    for number, plan in enumerate(plans):
        size = make_shard(job, number, lambda finding: None)
        uri = storage.join(str(folder), shards.SHARDS, plan.name)
        made[plan.name] = shards.read_summary(StoredFile(uri, size))
    shards.write_dataset(str(folder), made, manifest.label_sets, {})
    return str(folder)
