from __future__ import annotations

import pytest
import torch

from tpn_ray.model.frames import fold
from tpn_ray.model.pixels import FLOW_MEAN, FLOW_STD, IMAGENET_MEAN, IMAGENET_STD, Normalise


def test_pixels_become_normalised_floats() -> None:
    clips = torch.randint(0, 256, (2, 4, 5, 6, 3), dtype=torch.uint8)
    expected = (clips[1, 2, 3, 4, 0].item() - IMAGENET_MEAN[0]) / IMAGENET_STD[0]
    result = Normalise()(clips)
    assert result.shape == (2, 3, 4, 5, 6)
    assert result[1, 0, 2, 3, 4].item() == pytest.approx(expected, rel=1e-6)


def test_the_memory_is_already_in_the_networks_order() -> None:
    result = Normalise()(torch.zeros(2, 4, 5, 6, 3, dtype=torch.uint8))
    assert result.is_contiguous(memory_format=torch.channels_last_3d)
    assert fold(result).data_ptr() == result.data_ptr()


def test_other_channel_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="clips have 1 channels, the mean has 3"):
        Normalise()(torch.zeros(1, 1, 2, 2, 1, dtype=torch.uint8))


def test_a_stack_becomes_the_channels_of_a_frame() -> None:
    """In the published order: x and y of the first picture, then of the second."""
    flow = torch.arange(2 * 6 * 3 * 4 * 2, dtype=torch.uint8).view(2, 6, 3, 4, 2)
    frames = Normalise(FLOW_MEAN, FLOW_STD, stack=3)(flow)
    assert frames.shape == (2, 6, 2, 3, 4)
    assert frames.is_contiguous(memory_format=torch.channels_last_3d)
    for channel in range(6):
        expected = (flow[:, channel // 2 :: 3, ..., channel % 2].float() - 128) / 128
        torch.testing.assert_close(frames[:, channel], expected, rtol=0, atol=0)
    levels = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 1, 3, 1, 1).expand(1, 1, 3, 1, 2)
    assert Normalise(FLOW_MEAN, FLOW_STD)(levels)[0, 0, 0, :, 0].tolist() == [-1, 0, 127 / 128]
