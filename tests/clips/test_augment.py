"""Augmentation: pure draws, crops inside the picture, jitter equal to its steps done one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tpn_ray.clips import augment
from tpn_ray.clips.augment import AugmentConfig, CropDraw, draw_crop, draw_jitter, generator
from tpn_ray.errors import ConfigError

PLAIN = AugmentConfig(crop_px=32, test_short_side_px=40, brightness=0, contrast=0, saturation=0, hue=0, flip=0)


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_a_draw_depends_on_its_four_numbers_alone() -> None:
    place = (3, 1, 4, 1)
    assert generator(*place).integers(2**60) == generator(*place).integers(2**60)
    others = [(4, 1, 4, 1), (3, 2, 4, 1), (3, 1, 5, 1), (3, 1, 4, 2), (1, 3, 4, 1), (3, 1, 1, 4)]
    firsts = {int(generator(*other).integers(2**60)) for other in [place, *others]}
    assert len(firsts) == len(others) + 1
    # No clip's numbers are the next clip's, one step on.
    assert not np.isin(
        generator(0, 0, 0, 0).integers(2**60, size=64), generator(0, 0, 1, 0).integers(2**60, size=64)
    ).any()


def test_draws_are_the_same_on_every_machine() -> None:
    """Frozen values: a change here changes what every resumed run sees."""
    assert generator(7, 2, 19, 1).integers(2**32) == 2_363_785_988
    assert draw_crop(AugmentConfig(), 256, 340, generator(0, 0, 0, 0)) == CropDraw(35, 5, 123, 142, mirrored=True)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32))
def test_crops_are_inside_the_picture(height: int, width: int, seed: int) -> None:
    crop = draw_crop(AugmentConfig(), height, width, np.random.default_rng(seed))
    assert crop.width_px >= 1
    assert crop.height_px >= 1
    assert 0 <= crop.left_px <= width - crop.width_px
    assert 0 <= crop.top_px <= height - crop.height_px


def test_crops_have_the_drawn_area_and_aspect() -> None:
    random = np.random.default_rng(0)
    crops = [draw_crop(AugmentConfig(area=(0.2, 0.4)), 256, 340, random) for _ in range(500)]
    areas = np.array([crop.width_px * crop.height_px / (256 * 340) for crop in crops])
    aspects = np.array([crop.width_px / crop.height_px for crop in crops])
    assert 0.19 < areas.min() < 0.21 < 0.39 < areas.max() < 0.41
    assert 0.74 < aspects.min() < 0.77 < 1.30 < aspects.max() < 1.35
    assert 0.4 < np.mean([crop.mirrored for crop in crops]) < 0.6


def test_a_picture_that_fits_no_draw_gets_its_middle_square() -> None:
    crop = draw_crop(AugmentConfig(area=(1.0, 1.0), flip=0), 10, 100, np.random.default_rng(0))
    assert crop == CropDraw(45, 0, 10, 10, False)


def test_crop_resize_and_mirror() -> None:
    frames = noise(3, 20, 30)
    crop = CropDraw(4, 2, 16, 12)
    out = augment.crop_and_resize(frames, crop, 8)
    expected = Image.fromarray(frames[1][2:14, 4:20]).resize((8, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(out[1], np.asarray(expected))
    mirrored = augment.crop_and_resize(frames, CropDraw(4, 2, 16, 12, mirrored=True), 8)
    np.testing.assert_array_equal(mirrored, out[:, :, ::-1])
    same_size = augment.crop_and_resize(frames, CropDraw(5, 0, 20, 20), 20)
    np.testing.assert_array_equal(same_size, frames[:, :, 5:25])


def test_jitter_is_its_four_steps_in_order() -> None:
    """The one affine map equals brightness, contrast, saturation and hue applied one after the other."""
    frames = noise(2, 9, 7) // 4 + 96  # no step leaves 0..255, so that nothing is clipped between
    luma = np.array([0.299, 0.587, 0.114])
    for seed in range(20):
        config = AugmentConfig(brightness=0.2, contrast=0.3, saturation=0.3, hue=0.05)
        jitter = draw_jitter(config, np.random.default_rng(seed))
        random = np.random.default_rng(seed)
        brightness, contrast, saturation = (random.uniform(1 - s, 1 + s) for s in (0.2, 0.3, 0.3))
        turns, order = random.uniform(-0.05, 0.05), random.permutation(4)
        pixels = frames.astype(float)
        for step in order:
            grey = pixels @ luma
            pixels = (
                pixels * brightness,
                grey.mean() + (pixels - grey.mean()) * contrast,
                grey[..., None] + (pixels - grey[..., None]) * saturation,
                pixels @ augment.hue_turn(turns).T,
            )[step]
        np.testing.assert_allclose(augment.apply_jitter(frames, jitter), np.clip(pixels, 0, 255), atol=0.51)


def test_hue_turns_colours_and_leaves_grey() -> None:
    third = augment.hue_turn(1 / 3)
    np.testing.assert_allclose(third @ [1, 1, 1], [1, 1, 1], atol=1e-9)
    np.testing.assert_allclose(np.linalg.matrix_power(third, 3), np.eye(3), atol=1e-9)


def test_jitter_has_one_draw_for_all_frames() -> None:
    frames = np.repeat(noise(1, 16, 16), 4, axis=0)
    out = augment.train_view(frames, AugmentConfig(crop_px=8, test_short_side_px=8), np.random.default_rng(3))
    assert (out == out[:1]).all()


def test_without_strengths_nothing_is_jittered() -> None:
    frames = noise(2, 32, 32)
    whole = AugmentConfig(
        crop_px=32,
        test_short_side_px=32,
        area=(1, 1),
        aspect=(1, 1),
        flip=0,
        brightness=0,
        contrast=0,
        saturation=0,
        hue=0,
    )
    np.testing.assert_array_equal(augment.train_view(frames, whole, np.random.default_rng(0)), frames)


def test_a_view_is_a_pure_function() -> None:
    frames, before = noise(4, 50, 70), noise(4, 50, 70)
    config = AugmentConfig(crop_px=32, test_short_side_px=40)
    one, two = (augment.train_view(frames, config, generator(1, 2, 3, 0)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(frames, before)
    assert one.shape == (4, 32, 32, 3)
    assert one.dtype == np.uint8
    assert (one != augment.train_view(frames, config, generator(1, 3, 3, 0))).any()


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (41, 41), (333, 40), (20, 33)])
def test_test_views(height: int, width: int) -> None:
    frames = noise(2, height, width)
    centre = augment.test_view(frames, PLAIN)
    assert centre.shape == (2, 32, 32, 3)
    left, middle, right = (augment.test_view(frames, PLAIN, crop) for crop in augment.THREE_CROPS)
    assert left.shape == middle.shape == right.shape == (2, 40, 40, 3)
    long_side = 1 if height > width else 2
    if height != width:
        scaled = [40, 40]
        scaled[long_side - 1] = round(max(height, width) * 40 / min(height, width))
        resized = np.asarray(Image.fromarray(frames[0]).resize(scaled[::-1], Image.Resampling.BILINEAR))
        ends = (resized[:40], resized[-40:]) if height > width else (resized[:, :40], resized[:, -40:])
        np.testing.assert_array_equal(left[0], ends[0])
        np.testing.assert_array_equal(right[0], ends[1])
    np.testing.assert_array_equal(middle[:, 4:36, 4:36], centre)


def test_of_mirrored_flow_x_is_the_opposite() -> None:
    flow = np.random.default_rng(0).integers(0, 256, (2, 40, 48, 2), dtype=np.uint8)
    crop = CropDraw(4, 2, 32, 36)
    plain, mirrored = (
        augment.crop_and_resize(flow, CropDraw(crop.left_px, crop.top_px, crop.width_px, crop.height_px, flip), 16)
        for flip in (False, True)
    )
    np.testing.assert_array_equal(mirrored[..., 0], 255 - plain[:, :, ::-1, 0])
    np.testing.assert_array_equal(mirrored[..., 1], plain[:, :, ::-1, 1])
    gray = np.repeat(flow[..., 1:], 3, axis=3)  # each value is resized as a gray picture is, and not scaled
    np.testing.assert_array_equal(plain[..., 1], augment.crop_and_resize(gray, crop, 16)[..., 0])


def test_impossible_configs_show_the_value() -> None:
    for fields, message in (
        ({"crop_px": 0}, "crop_px is 0"),
        ({"crop_px": 300}, "test_short_side_px is 256, below crop_px 300"),
        ({"area": (0.5, 0.2)}, r"area is \(0.5, 0.2\)"),
        ({"aspect": (0, 1)}, "aspect is"),
        ({"flip": 1.5}, "flip is 1.5"),
        ({"hue": 0.6}, "hue is 0.6; it must be between 0 and 0.5"),
    ):
        with pytest.raises(ConfigError, match=message):
            AugmentConfig(**fields)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="known: centre, left, middle, right"):
        augment.test_view(noise(1, 64, 64), PLAIN, "top")  # type: ignore[arg-type]
