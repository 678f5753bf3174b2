"""Real clips in three containers and codecs, of different sizes and rates, train with the same command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.jobs.processes import run_on
from tests.ray_head import RayHead
from tests.real_clips import SOURCES, make_dataset

pytestmark = pytest.mark.cluster


@pytest.mark.long
def test_a_folder_of_real_clips(cluster: RayHead, tmp_path: Path) -> None:
    (tmp_path / "downloads").mkdir()
    make_dataset(tmp_path / "clips", tmp_path / "downloads")
    suffixes = {path.suffix for path in (tmp_path / "clips").rglob("*.*")}
    assert suffixes == {".mp4", ".webm", ".avi"}
    flags = ["toy", "--data", str(tmp_path / "clips"), "--storage", str(tmp_path / "runs"), "--views", "2x3"]
    flags += ["--clip.frames", "8", "--clip.stride-frames", "2", "--loop.batch-clips", "4", "--loop.epochs", "4"]
    status, output = run_on(cluster, "train", *flags, "--loop.micro-batch-clips", "2")
    assert status == 0, output
    assert f"{4 * len(SOURCES)} videos of" in output
    assert "bad video" not in output
    assert "6 view(s) each" in output
