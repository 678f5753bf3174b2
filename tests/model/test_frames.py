from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tpn_ray.model.frames import along_time, fold, max_pool_time, stretch_time, unfold


def channels_last(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last_3d)


def test_folding_is_a_view_and_returns() -> None:
    clips = channels_last(2, 5, 3, 4, 6)
    frames = fold(clips)
    assert frames.shape == (6, 5, 4, 6)
    assert frames.data_ptr() == clips.data_ptr()
    assert torch.equal(frames[4], clips[1, :, 1])
    assert torch.equal(unfold(frames, 3), clips)


def test_folding_contiguous_clips_copies_them() -> None:
    clips = torch.randn(2, 5, 3, 4, 6)
    assert torch.equal(unfold(fold(clips), 3), clips)


@pytest.mark.parametrize("memory", [torch.channels_last_3d, torch.contiguous_format])
def test_a_column_convolution_is_a_temporal_convolution(memory: torch.memory_format) -> None:
    clips, kernel = torch.randn(2, 5, 4, 3, 6).contiguous(memory_format=memory), torch.randn(7, 5, 3, 1)
    ours = along_time(lambda columns: F.conv2d(columns, kernel, padding=(1, 0)), clips)
    torch.testing.assert_close(ours, F.conv3d(clips, kernel.unsqueeze(4), padding=(1, 0, 0)))


@pytest.mark.parametrize(("t", "factor"), [(8, 8), (8, 3), (5, 2), (4, 8), (6, 1), (1, 2)])
def test_temporal_pool_and_its_gradient_equal_max_pool3d(t: int, factor: int) -> None:
    # Values repeat, so that ties occur: their gradient belongs to the first frame.
    clips = torch.randint(0, 3, (2, 4, t, 3, 3)).float().contiguous(memory_format=torch.channels_last_3d)
    ours, theirs = clips.clone().requires_grad_(), clips.clone().requires_grad_()
    a = max_pool_time(ours, factor)
    b = F.max_pool3d(theirs, (factor, 1, 1), (factor, 1, 1), ceil_mode=True)
    weight = torch.randn_like(b)
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    assert torch.equal(a, b)
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize(("t", "to"), [(1, 4), (2, 4), (2, 3), (3, 3), (3, 5)])
def test_stretching_is_nearest_neighbour(t: int, to: int) -> None:
    clips = channels_last(2, 3, t, 4, 5)
    theirs = F.interpolate(clips.contiguous(), size=(to, 4, 5), mode="nearest")
    assert torch.equal(stretch_time(clips, to), theirs)
