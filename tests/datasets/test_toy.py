"""The toy dataset: the same bytes each time, real H.264, and a class that only time tells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tpn_ray.datasets import toy
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.datasets.toy import TOY_CLASSES, TOY_PERIODS_FRAMES, ToyConfig, draw_toy, encode_toy, write_toy
from tpn_ray.errors import ConfigError
from tpn_ray.videos.decode import open_video

SMALL = ToyConfig(train_per_class=2, val_per_class=1, frames=24)


def test_layout_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process and several make the same."""
    calls: list[tuple[int, int]] = []
    write_toy(str(tmp_path / "a"), SMALL, progress=lambda done, total: calls.append((done, total)))
    monkeypatch.setattr(toy, "WORTH_PROCESSES", 1)
    write_toy(str(tmp_path / "b"), SMALL)
    assert calls == [(number, 24) for number in range(1, 25)]
    manifest = load_manifest(str(tmp_path / "a"))
    assert manifest.label_sets["action"] == TOY_CLASSES == tuple(sorted(TOY_CLASSES))
    assert (len(manifest.select("train")), len(manifest.select("val"))) == (16, 8)
    assert manifest.version == load_manifest(str(tmp_path / "b")).version
    videos = [path.read_bytes() for path in sorted((tmp_path / "a").rglob("*.mp4"))]
    assert videos == [path.read_bytes() for path in sorted((tmp_path / "b").rglob("*.mp4"))]
    assert len(set(videos)) == 24
    with open_video(videos[0]) as video:
        assert (video.frame_count, video.height, video.width, video.frames_per_second) == (24, 64, 64, 25)


def test_another_seed_makes_other_videos() -> None:
    other = ToyConfig(train_per_class=2, val_per_class=1, frames=24, seed=1)
    assert encode_toy(draw_toy(SMALL, 0, 0), SMALL) != encode_toy(draw_toy(other, 0, 0), other)


def test_the_period_is_the_class() -> None:
    """The main frequency of the frames' change over time is the class's, through the codec."""
    config = ToyConfig(frames=320)
    for label, period in enumerate(TOY_PERIODS_FRAMES):
        with open_video(encode_toy(draw_toy(config, label, 0), config)) as video:
            pixels = video.frames(range(320)).astype(float).mean(axis=-1).reshape(320, -1)
        spectrum = np.abs(np.fft.rfft(pixels - pixels.mean(axis=0), axis=0)).sum(axis=1)
        assert 320 / spectrum.argmax() == pytest.approx(period, rel=0.15)


def test_single_frames_do_not_tell_the_class() -> None:
    """Simple statistics of one frame have the same spread in the fastest and in the slowest class."""
    config = ToyConfig(frames=8)
    means = [[draw_toy(config, label, number)[4].mean() for number in range(60)] for label in (0, 7)]
    assert abs(np.mean(means[0]) - np.mean(means[1])) < 3 * np.hypot(np.std(means[0]), np.std(means[1])) / np.sqrt(60)


def test_impossible_configs_show_the_value() -> None:
    with pytest.raises(ConfigError, match="frames is 0"):
        ToyConfig(frames=0)
    with pytest.raises(ConfigError, match="size_px is 63; it must be even"):
        ToyConfig(size_px=63)
