"""Each operation on pictures whose outcome is known; the draws; the same bits on every device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tpn_ray.clips.augment import AFTER_DECODING, AugmentConfig, generator
from tpn_ray.clips.randaugment import OPERATIONS, rand_augment
from tpn_ray.errors import ConfigError

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def randoms(count: int) -> list[np.random.Generator]:
    return [generator(0, 0, sample, 0) for sample in range(count)]


def clip(seed: int = 0, low: int = 20, high: int = 200) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (2, 20, 30, 3), dtype=torch.uint8, generator=random)


def tall(one: torch.Tensor) -> Image.Image:
    """All frames as one picture, as a clip's statistics are those of all its frames."""
    return Image.fromarray(one.reshape(-1, one.shape[2], 3).numpy())


def test_equalize_and_autocontrast_are_those_of_pillow() -> None:
    for one in (clip(), clip(1, 100, 101), clip(2, 0, 256)):
        for name, expected in (("equalize", ImageOps.equalize), ("autocontrast", ImageOps.autocontrast)):
            made = OPERATIONS[name](one, 0.9).reshape(-1, 30, 3).numpy().astype(int)
            assert np.abs(made - np.array(expected(tall(one)))).max() <= 1, name


def test_posterize_and_solarize_are_those_of_pillow() -> None:
    one = clip(2, 0, 256)
    assert np.array_equal(OPERATIONS["posterize"](one, -0.5).reshape(-1, 30, 3), ImageOps.posterize(tall(one), 6))
    assert np.array_equal(OPERATIONS["solarize"](one, 0.5).reshape(-1, 30, 3), ImageOps.solarize(tall(one), 128))


def test_colors_move_towards_gray_and_away() -> None:
    one = clip()
    assert OPERATIONS["saturation"](one, -1).float().std(dim=-1).mean() < 0.2 * one.float().std(dim=-1).mean()
    assert OPERATIONS["contrast"](one, -1).float().std() < 0.2 * one.float().std()
    assert OPERATIONS["brightness"](one, 0.5).float().mean() > 1.3 * one.float().mean()
    for name in ("saturation", "contrast", "brightness", "rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
        assert torch.equal(OPERATIONS[name](one, 0), one), name


def test_pixels_move_and_what_comes_in_is_gray() -> None:
    one = clip()
    right = OPERATIONS["translate_x"](one, 1)  # 0.45 of 30 is 13.5, to the even 14
    assert torch.equal(right[:, :, :16], one[:, :, 14:])
    assert (right[:, :, 16:] == 128).all()
    assert torch.equal(OPERATIONS["translate_y"](one, -1)[:, 9:], one[:, :11])
    sheared = OPERATIONS["shear_y"](one, 1)
    assert torch.equal(sheared[:, :, 15], one[:, :, 15]), "the middle stays"
    assert (OPERATIONS["rotate"](one, 1)[:, 0, 0] == 128).all()


@pytest.mark.parametrize("device", DEVICES)
def test_draws_are_a_function_of_the_seed_and_the_device_changes_no_bit(device: str) -> None:
    clips = torch.stack([clip(seed) for seed in range(24)])
    before = clips.clone()
    config = AugmentConfig(rand_operations=2)
    made = rand_augment(clips, config, randoms(24))
    assert torch.equal(clips, before)
    assert torch.equal(rand_augment(clips.to(device), config, randoms(24)).cpu(), made)
    assert torch.equal(rand_augment(clips[:5], config, randoms(5)), made[:5]), "each clip on its own"
    assert sum(not torch.equal(one, other) for one, other in zip(clips, made, strict=True)) > 18
    assert rand_augment(clips, AugmentConfig(), randoms(24)) is clips
    assert rand_augment(clips[:0], config, []).shape == (0, 2, 20, 30, 3)


def test_places_in_the_plan_have_draws_of_their_own() -> None:
    draws = {generator(0, 0, 9, AFTER_DECODING + position).random() for position in (*range(99), 2**40, 2**40 + 1)}
    assert len(draws) == 101


@pytest.mark.parametrize("fields", [{"rand_operations": -1}, {"rand_magnitude": 11.0}])
def test_nonsense_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(fields)))):
        AugmentConfig(**fields)  # type: ignore[arg-type]
