from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.share import ShareBench, measure_share
from tpn_ray.errors import ConfigError


def test_two_trials_that_share_cost_less_than_two(toy_folder: Path) -> None:
    bench = ShareBench(data=str(toy_folder), trials=2, frames=16, stride_frames=4, crop_px=48, blocks=4, rounds=3)
    report = measure_share(bench)
    assert len(report.ratios) == 3
    assert all(ratio > 0 for ratio in report.ratios)
    assert "decoding for 2 trials that share costs" in str(report)


def test_nonsense(toy_folder: Path) -> None:
    with pytest.raises(ConfigError, match="trials=0"):
        ShareBench(data="x", trials=0)
    with pytest.raises(ConfigError, match="32 training videos do not fill a block of 64"):
        measure_share(ShareBench(data=str(toy_folder), micro_batch_clips=64, trials=1))
