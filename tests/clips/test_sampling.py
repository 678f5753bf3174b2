"""Sampling against the published formulas, and its properties for any video length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpn_ray.clips.sampling import ClipConfig, test_indices, train_indices
from tpn_ray.errors import BadVideo, ConfigError

configs = st.builds(
    ClipConfig,
    frames=st.integers(1, 40),
    stride_frames=st.integers(1, 16),
    sampling=st.sampled_from(["dense", "segments"]),
)


@given(configs, st.integers(1, 2000), st.integers(0, 2**32))
def test_every_index_is_in_the_video(config: ClipConfig, frame_count: int, seed: int) -> None:
    train = train_indices(config, frame_count, np.random.default_rng(seed))
    test = test_indices(config, frame_count, clips=3)
    assert train.shape == (config.frames,)
    assert test.shape == (3, config.frames)
    assert train.dtype == test.dtype == np.int64
    for indices in (train, test):
        assert indices.min() >= 0
        assert indices.max() < frame_count


@given(st.integers(1, 20), st.integers(1, 300), st.integers(0, 2**32))
def test_segments_of_flow_are_stacks_of_five(frames: int, frame_count: int, seed: int) -> None:
    config = ClipConfig(frames=frames, sampling="segments", modality="flow")
    assert (config.pictures, config.colors, config.channels) == (5 * frames, 2, 10)
    train = train_indices(config, frame_count, np.random.default_rng(seed)).reshape(frames, 5)
    test = test_indices(config, frame_count, clips=2).reshape(2, frames, 5)
    for stacks in (train, test):
        assert stacks.max() < frame_count
        np.testing.assert_array_equal((stacks - stacks[..., :1]) % frame_count, np.arange(5) % frame_count + 0 * stacks)
        if frame_count >= 5:
            assert (np.diff(stacks) == 1).all()


def test_dense_flow_is_sampled_as_frames_are() -> None:
    rgb, flow = (ClipConfig(frames=8, stride_frames=2, modality=modality) for modality in ("rgb", "flow"))
    assert (flow.pictures, flow.colors, flow.channels) == (8, 2, 2)
    for one, other in ((test_indices(rgb, 60, 3), test_indices(flow, 60, 3)),):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ConfigError, match=r"modality.*'depth'.*rgb, flow"):
        ClipConfig(modality="depth")  # type: ignore[arg-type]


@given(configs, st.integers(1, 2000), st.integers(0, 2**32))
def test_time_runs_forward(config: ClipConfig, frame_count: int, seed: int) -> None:
    indices = train_indices(config, frame_count, np.random.default_rng(seed))
    if config.sampling == "segments" or frame_count >= config.frames * config.stride_frames:
        assert (np.diff(indices) >= 0).all()
    if config.sampling == "dense":
        assert (np.diff(indices) % frame_count == config.stride_frames % frame_count).all()


def test_dense_training_reaches_every_start_and_no_other() -> None:
    config = ClipConfig(frames=4, stride_frames=5)
    random = np.random.default_rng(0)
    starts = {int(train_indices(config, 30, random)[0]) for _ in range(500)}
    assert starts == set(range(11))  # mmaction2: 30 - 4 * 5 + 1


def test_dense_test_clips_are_the_published_ones() -> None:
    config = ClipConfig(frames=8, stride_frames=8)  # spans 57 frames
    ten = test_indices(config, 300, clips=10)
    # mmaction2: round(i * (300 - 57) / 9)
    assert ten[:, 0].tolist() == [0, 27, 54, 81, 108, 135, 162, 189, 216, 243]
    assert ten[-1, -1] == 299
    assert test_indices(config, 300, clips=1)[0, 0] == 121  # (300 - 57) // 2


def test_a_short_video_starts_again() -> None:
    config = ClipConfig(frames=8, stride_frames=8)
    assert test_indices(config, 20, clips=1)[0].tolist() == [0, 8, 16, 4, 12, 0, 8, 16]
    assert train_indices(config, 20, np.random.default_rng(0)).tolist() == [0, 8, 16, 4, 12, 0, 8, 16]
    assert test_indices(config, 1, clips=2).tolist() == [[0] * 8] * 2


def test_segments_are_the_published_ones() -> None:
    config = ClipConfig(frames=8, sampling="segments")
    # mmaction2: i * 64/8 + 64/16, and with twice_sample also i * 64/8
    assert test_indices(config, 64, clips=2).tolist() == [list(range(4, 64, 8)), list(range(0, 64, 8))]
    random = np.random.default_rng(0)
    draws = np.stack([train_indices(config, 70, random) for _ in range(300)])
    for part in range(8):  # 70 // 8 = 8 frames a part
        assert set(draws[:, part].tolist()) == set(range(part * 8, part * 8 + 8))
    assert train_indices(config, 4, random).tolist() == [0, 0, 1, 2, 2, 2, 3, 3]


def test_impossible_configs_show_the_value() -> None:
    with pytest.raises(ConfigError, match="frames is 0"):
        ClipConfig(frames=0)
    with pytest.raises(ConfigError, match="stride_frames is -1"):
        ClipConfig(stride_frames=-1)
    with pytest.raises(ConfigError, match=r"unknown sampling 'nearest'.*; known: dense, segments"):
        ClipConfig(sampling="nearest")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="clips is 0"):
        test_indices(ClipConfig(), 10, clips=0)
    with pytest.raises(BadVideo) as caught:
        train_indices(ClipConfig(), 0, np.random.default_rng(0))
    assert caught.value.reason == "no_picture"


def test_span() -> None:
    assert ClipConfig(frames=8, stride_frames=8).span_frames == 57
    assert ClipConfig(frames=1).span_frames == 1
