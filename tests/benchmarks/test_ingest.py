"""The ingest benchmark's stages, without Ray; its end-to-end part runs with jobs/bench.py ingest."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import ingest
from benchmarks.ingest import IngestBench
from tpn_ray import recipes
from tpn_ray.data.tasks import ClipSource
from tpn_ray.datasets import reader
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.errors import ConfigError
from tpn_ray.planning.ingest import WARM_UP_BLOCKS, clips_per_second, plan_for


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_stages_are_measured(toy_folder: Path, device: str) -> None:
    options = IngestBench(data=str(toy_folder), blocks=2, rounds=1, device=device)
    recipe = recipes.toy()
    source = ClipSource(
        manifest=load_manifest(options.data).select("train"),
        clip=recipe.clip,
        augment=recipe.augment,
        seed=0,
        developed=device == "cpu",
    )
    plan = plan_for(len(source.manifest), options.micro_batch_clips, options.blocks)
    assert plan.blocks(1) >= 2 * (WARM_UP_BLOCKS + 2)
    stages = ingest.measure_stages(source, plan, options)
    assert next(iter(stages)) == "object store -> bytes"
    assert len(stages) == 4
    held = ingest.fetched_for(source, plan, options)
    for fetch in (reader.fetch, lambda _, sample: held[sample]):
        speed, pixels, bad = clips_per_second(ingest.without_ray(source, plan, fetch), options.blocks)
        assert speed > 0
        assert pixels > 0
        assert bad == 0
    assert ingest.ratio([1.0, 3.0, 2.0], [1.0, 1.0, 1.0]) == (2.0, (1.0, 3.0))


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match="device='tpu' must be cuda or cpu"):
        IngestBench(data="x", device="tpu")
    with pytest.raises(ConfigError, match="rounds=0 must be above 0"):
        IngestBench(data="x", rounds=0)
    with pytest.raises(ConfigError, match="its folder is not there; make it first"):
        IngestBench(data="x", json="nowhere/figures.json")
