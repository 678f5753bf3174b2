"""Flow is the motion in the video, comes back from storage, and has the same bits on every CPU."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.videos import videos
from tpn_ray.errors import BadVideo, ConfigError
from tpn_ray.videos.decode import open_video
from tpn_ray.videos.encode import EncodeConfig, prepare_plain
from tpn_ray.videos.flow import dense_flow, prepare_with_flow, to_levels
from tpn_ray.videos.packets import DecodeLimits

RIGHT_PX, DOWN_PX = 5, -3
CONFIG = EncodeConfig(flow=True)
RIM_PX = 12  # what enters and leaves the picture has no flow


def moving(number: int, height: int, width: int) -> NDArray[np.uint8]:
    """Frame `number` of a smooth random texture that moves by RIGHT_PX and DOWN_PX each frame."""
    smooth = np.random.default_rng(0).random((height, width))
    for axis in (0, 1):
        smooth = np.sum([np.roll(smooth, shift, axis) for shift in range(8)], axis=0)
    levels = np.uint8(255 * (smooth - smooth.min()) / np.ptp(smooth))
    return np.repeat(np.roll(levels, (DOWN_PX * number, RIGHT_PX * number), (0, 1))[..., None], 3, axis=2)


def prepared(frames: int = 8, size: tuple[int, int] = (64, 96)) -> dict[str, Any]:
    data = videos.encode(frames=frames, size=size, draw=moving, options={"crf": "10"})
    return prepare_with_flow(data, None, CONFIG, DecodeLimits())


def test_the_flow_of_a_moved_picture_is_its_motion() -> None:
    first, second = moving(0, 96, 128)[..., 0], moving(1, 96, 128)[..., 0]
    flow = dense_flow(first, second)[RIM_PX:-RIM_PX, RIM_PX:-RIM_PX]
    assert np.abs(flow - [RIGHT_PX, DOWN_PX]).max() < 0.5
    assert np.abs(flow.mean(axis=(0, 1)) - [RIGHT_PX, DOWN_PX]).max() < 0.05
    assert not dense_flow(first, first).any()


def test_levels_are_the_published_ones() -> None:
    levels = to_levels(np.float32([-25, -20, -10, 0, 10, 20, 25]), 20)
    assert levels.tolist() == [0, 0, 64, 128, 191, 255, 255]


def test_what_is_stored_is_the_flow_and_any_frame_can_be_read() -> None:
    made = prepared(frames=40)
    with open_video(made["flow"], flow=True) as video:
        assert (video.frame_count, video.height, video.width) == (39, 64, 96)
        every = video.frames(range(39))
        assert np.array_equal(video.frames([33, 7, 8]), every[[33, 7, 8]])
        assert video.clip_planes([[0]], [lambda height, width: None]) is None
        seconds = video.seconds()
    assert every.shape == (39, 64, 96, 2)
    middle = every[:6, RIM_PX:-RIM_PX, RIM_PX:-RIM_PX].astype(np.float64) * 40 / 255 - 20
    assert np.abs(middle.mean(axis=(0, 1, 2)) - [RIGHT_PX, DOWN_PX]).max() < 0.15
    assert np.abs(middle - [RIGHT_PX, DOWN_PX]).mean() < 0.25
    assert np.array_equal(np.rint(seconds * 1e6), made["times_us"][:39])


def test_the_same_video_gives_the_same_bytes_and_its_frames_are_those_without_flow() -> None:
    made = prepared()
    assert made == prepared()
    data = videos.encode(frames=8, size=(64, 96), draw=moving, options={"crf": "10"})
    alone = prepare_plain(data, None, EncodeConfig(), DecodeLimits())
    assert alone == {**made, "flow": b""}


def test_every_cpu_gives_the_same_bits() -> None:
    """Those of other CPUs are tried by having OpenCV use fewer instructions of this one."""
    program = (
        "import hashlib; from tests.videos.test_flow import moving; from tpn_ray.videos.flow import dense_flow; "
        "print(hashlib.sha256(dense_flow(moving(0, 96, 128)[..., 0], moving(1, 96, 128)[..., 0])).hexdigest())"
    )
    here = hashlib.sha256(dense_flow(moving(0, 96, 128)[..., 0], moving(1, 96, 128)[..., 0])).hexdigest()
    without = {**os.environ, "OPENCV_CPU_DISABLE": "AVX512_SKX,AVX2,FMA3,AVX,SSE4_2,SSE4_1"}
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=without)
    assert done.stdout.split()[-1] == here


def test_small_frames_have_flow_and_a_single_frame_has_none() -> None:
    with open_video(prepared(frames=5, size=(8, 64))["flow"], flow=True) as video:
        assert (video.height, video.width) == (8, 64)
    data = videos.encode(frames=1)
    with pytest.raises(BadVideo, match="flow needs at least 2 frames") as caught:
        prepare_with_flow(data, None, EncodeConfig(flow=True, min_frames=1), DecodeLimits())
    assert caught.value.reason == "too_short"


def test_flow_of_copied_videos_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"leave out --copy, or --flow"):
        EncodeConfig(flow=True, copy=True)
    with pytest.raises(ConfigError, match="flow_bound_px is 0"):
        EncodeConfig(flow=True, flow_bound_px=0)
