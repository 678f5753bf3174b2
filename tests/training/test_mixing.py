"""What is mixed with what, and that the classes get the shares that are seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tpn_ray.recipe import LossConfig
from tpn_ray.training.mixing import draw_mix, mix

BOTH = LossConfig(mixup=0.8, cutmix=1.0)


@pytest.mark.parametrize(
    "config", [LossConfig(mixup=0.8), LossConfig(cutmix=1.0), BOTH], ids=["mixup", "cutmix", "both"]
)
def test_classes_get_the_share_that_is_seen(config: LossConfig) -> None:
    """Clips of one value each: the mean of a mixed clip tells how much of either is in it."""
    values = torch.arange(1.0, 9.0)
    clips = values[:, None, None, None, None].expand(8, 3, 4, 20, 30)
    mixed, partners = mix(clips, config, seed=5)
    assert partners is not None
    assert sorted(partners.of.tolist()) == list(range(8))
    assert (partners.own >= 0.5).all()
    expected = partners.own * values + (1 - partners.own) * values[partners.of]
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3, 4)), expected)
    assert torch.equal(mixed, mixed[:, :1, :1].expand_as(mixed)), "every frame and every color alike"


def test_a_cut_shows_a_rectangle_and_mixup_the_whole() -> None:
    draw = draw_mix(BOTH, 400, 20, 30, seed=1)
    cut = draw.kept == 0
    assert 0.4 < cut.mean() < 0.6
    assert (draw.boxes[~cut] == [0, 20, 0, 30]).all()
    assert np.array_equal(draw.kept[~cut], draw.own[~cut])
    top, bottom, left, right = draw.boxes[cut].T
    assert ((top <= bottom) & (left <= right) & (bottom <= 20) & (right <= 30)).all()
    assert np.allclose(draw.own[cut], 1 - (bottom - top) * (right - left) / 600)
    assert np.unique(draw.own[cut]).size > 50


def test_draws_are_a_function_of_the_seed_alone() -> None:
    one, again, other = (draw_mix(BOTH, 8, 16, 16, seed) for seed in (3, 3, 2**62))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not np.array_equal(one.own, other.own)


@pytest.mark.parametrize("clips", [1, 2])
def test_what_is_left_when_videos_are_bad_is_mixed(clips: int) -> None:
    random = torch.Generator().manual_seed(0)
    whole = torch.randn(clips, 3, 2, 8, 8, generator=random)
    mixed, partners = mix(whole, BOTH, seed=0)
    assert partners is not None
    if clips == 1:
        torch.testing.assert_close(mixed, whole)
    assert mixed.shape == whole.shape


def test_nothing_is_touched_where_nothing_is_mixed() -> None:
    clips = torch.zeros(2, 3, 2, 8, 8)
    same, partners = mix(clips, LossConfig(), seed=0)
    assert same is clips
    assert partners is None
