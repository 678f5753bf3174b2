from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.views import ViewsBench, measure_views
from tpn_ray.errors import ConfigError


def test_a_line_for_each_kind(toy_folder: Path, tmp_path: Path) -> None:
    said = measure_views(ViewsBench(videos=str(toy_folder / "val" / "period_10"), views=("1x1", "2x3"), rounds=1))
    assert said.startswith("2 videos, 1 rounds")
    assert [line.split()[0] for line in said.splitlines()[1:]] == ["1x1", "1x1", "2x3", "2x3"]
    with pytest.raises(ConfigError, match="holds no videos"):
        measure_views(ViewsBench(videos=str(tmp_path)))
    with pytest.raises(ConfigError, match="rounds=0"):
        ViewsBench(videos="x", rounds=0)
