"""What the views of a video are, and that they cost one pass over it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpn_ray.clips import augment
from tpn_ray.clips.augment import AugmentConfig
from tpn_ray.clips.cut import all_views
from tpn_ray.clips.sampling import ClipConfig
from tpn_ray.clips.views import CROPS, FIVE, ViewFrames, Views, parse_views, see, windows
from tpn_ray.datasets.toy import ToyConfig, draw_toy, encode_toy
from tpn_ray.errors import ConfigError
from tpn_ray.videos.decode import open_video

CLIP = ClipConfig(frames=4, stride_frames=8)
AUGMENT = AugmentConfig(crop_px=32, test_short_side_px=48)


@pytest.fixture(scope="module")
def data() -> bytes:
    """104 frames at 25 per second, 64 pixels."""
    config = ToyConfig()
    return encode_toy(draw_toy(config, 3, 1), config)


def wide(frames: int = 2) -> np.ndarray:
    """Frames of 48 x 80 whose every pixel says where it is."""
    rows, columns = np.mgrid[0:48, 0:80].astype(np.uint8)
    return np.repeat(np.stack([rows, columns, rows], axis=-1)[None], frames, axis=0)


def views_of(frames: np.ndarray, text: str, seed: int = 0) -> np.ndarray:
    """The views of one clip of all these frames."""
    return all_views(ViewFrames(frames, np.arange(len(frames))[None], seed), parse_views(text), AUGMENT)


def test_three_crops_are_the_published_ones() -> None:
    frames = wide()
    views = views_of(frames, "1x3")
    published = [augment.test_view(frames, AUGMENT, crop) for crop in augment.THREE_CROPS]
    assert np.array_equal(views, np.stack(published))
    centre = views_of(frames, "1x1")
    assert np.array_equal(centre[0], augment.test_view(frames, AUGMENT))


def test_ten_crops_are_four_corners_the_centre_and_their_mirrors() -> None:
    views = views_of(wide(), "ten_crop")
    assert views.shape == (10, 2, 32, 32, 3)
    corners = [tuple(view[0, 0, 0, :2].tolist()) for view in views[:5]]
    assert corners == [(0, 0), (0, 48), (16, 0), (16, 48), (8, 24)]
    assert np.array_equal(views[5:], views[:5, :, :, ::-1])


def test_random_crops_depend_on_the_video_alone() -> None:
    first, again, other = (views_of(wide(), "1x3 random", seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.shape == (3, 2, 48, 48, 3)
    lefts = first[:, 0, 0, 0, 1]
    assert len(set(lefts.tolist())) > 1


def test_names_tell_clip_and_crop() -> None:
    assert parse_views("2x3").names == ["1 left", "1 middle", "1 right", "2 left", "2 middle", "2 right"]
    assert len(set(parse_views("ten_crop").names)) == 10


def test_segments_and_strides_replace_the_clip_of_the_recipe(data: bytes) -> None:
    assert parse_views("segments 8 ten_crop").clip(CLIP) == ClipConfig(frames=8, stride_frames=1, sampling="segments")
    assert parse_views("2x3 stride 2").clip(CLIP) == ClipConfig(frames=4, stride_frames=2)
    with pytest.raises(ConfigError, match="the recipe's segments have none"):
        parse_views("1x1 stride 4").clip(ClipConfig(sampling="segments"))
    with open_video(data) as video:
        seen = see(video, data, parse_views("segments 8"), CLIP, AUGMENT)
    assert all_views(seen, parse_views("segments 8"), AUGMENT).shape == (1, 8, 32, 32, 3)


def test_views_of_flow_are_mirrored_with_the_opposite_x_and_keep_their_stacks() -> None:
    flow = np.random.default_rng(0).integers(0, 256, (5, 48, 60, 2), dtype=np.uint8)
    made = all_views(ViewFrames(flow, np.arange(5)[None], 0), parse_views("ten_crop"), AUGMENT)
    assert made.shape == (10, 5, 32, 32, 2)
    np.testing.assert_array_equal(made[5, ..., 0], 255 - made[0, :, :, ::-1, 0])
    np.testing.assert_array_equal(made[5, ..., 1], made[0, :, :, ::-1, 1])
    assert parse_views("segments 4").clip(ClipConfig(modality="flow", sampling="segments")).pictures == 20
    with pytest.raises(ConfigError, match="the recipe's flow is sampled without stacks"):
        parse_views("segments 4").clip(ClipConfig(modality="flow"))


@pytest.mark.parametrize(
    "text", ["", "3x7", "0x1", "x", "10", "segments", "segments 0", "1x1 2x2", "1x1 random", "segments 8 stride 2", "a"]
)
def test_unknown_views(text: str) -> None:
    with pytest.raises(ConfigError, match="are not known; write CLIPSxCROPS"):
        parse_views(text)


@given(clips=st.integers(1, 12), crops=st.sampled_from([1, 3, 10]))
def test_what_is_written_is_what_is_read(clips: int, crops: int) -> None:
    assert parse_views(f"{clips}x{crops}") == Views(clips=clips, crops=CROPS[crops])
    assert len(FIVE) == 5


def test_all_views_cost_one_pass(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten clips in ten crops decode each of their frames once, and resize it once."""
    resized = []
    monkeypatch.setattr(augment, "test_size", lambda frames, config: resized.append(len(frames)) or frames[:, :48, :48])
    with open_video(data) as video:
        seen = see(video, data, parse_views("10x10"), CLIP, AUGMENT)
    starts = np.round(np.arange(10) * (104 - 25) / 9)
    distinct = {int(start) + 8 * step for start in starts for step in range(4)}
    assert sum(resized) == len(seen.frames) == len(distinct)
    assert all_views(seen, parse_views("10x10"), AUGMENT).shape == (100, 4, 32, 32, 3)


def test_of_the_only_crop_nothing_else_is_handed_on(data: bytes) -> None:
    with open_video(data) as video:
        seen = see(video, data, parse_views("2x1"), CLIP, AUGMENT)
    assert seen.frames.shape[1:] == (32, 32, 3)


def test_windows_cover_every_frame_and_carry_their_times(data: bytes) -> None:
    with open_video(data) as video:
        found = windows(video, 1.0, 1.0)
        assert [(window.begin, window.end) for window in found] == [(0, 25), (25, 50), (50, 75), (75, 100), (100, 104)]
        assert found[-1].end_seconds == pytest.approx(4.16)
        assert found[1].start_seconds == 1.0
        overlapping = windows(video, 2.0, 0.5)
        assert all(later.begin - earlier.begin in (12, 13) for earlier, later in pairwise(overlapping))
        assert overlapping[-1].end == 104
        whole = windows(video, 60.0, 60.0)
        assert [(window.begin, window.end) for window in whole] == [(0, 104)]
        with pytest.raises(ConfigError, match="the hop at most the length"):
            windows(video, 1.0, 2.0)


def test_a_window_is_a_video_of_its_own(data: bytes, tmp_path: Path) -> None:
    """The views of a window are those of its frames alone."""
    with open_video(data) as video:
        window = windows(video, 2.0, 2.0)[1]
        pixels = all_views(see(video, data, parse_views("2x1"), CLIP, AUGMENT, window), parse_views("2x1"), AUGMENT)
        expected = [50 + start + 8 * step for start in (0, 25) for step in range(4)]
        frames = video.frames(expected)
    assert np.array_equal(pixels, np.stack([augment.test_view(part, AUGMENT) for part in (frames[:4], frames[4:])]))
