"""A clip as a batch of frames: the memory layout that the whole network uses. Runs anywhere.

Clips n c t h w are kept in memory in the order n, t, h, w, c (torch: channels_last_3d). Without a copy, that memory can
be viewed as

    frames    (n t) c h w    a batch of images: convolutions and pools of 1xkxk are conv2d and max_pool2d
    columns   n c t (h w)    images whose height is time: convolutions of 3x1x1 and pools over time are conv2d and
                             max_pool2d too

and batch statistics over frames are those over clips. So the network needs neither Conv3d nor MaxPool3d. The benefits
are

  * speed on GPUs, whose channels-last kernels are made for images;
  * determinism: the backward of max_pool2d on CUDA gathers, in a fixed order, and keeps the published code's rule for
    ties (the first frame wins); amax would share ties, and max(dim), AvgPool3d and AdaptiveAvgPool3d scatter or raise;
  * no exposure to the silent faults of some cuDNN versions in low-precision 3D convolutions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Clips = Float[Tensor, "n c t h w"]
Frames = Float[Tensor, "nt c h w"]
Others = Float[Tensor, "n _ _ _ _"]


def fold(clips: Clips) -> Frames:
    """Convert clips to frames: a view if memory is channels-last already, otherwise the only copy of a forward pass."""
    return clips.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def unfold(frames: Frames, t: int) -> Clips:
    """Convert frames to clips of `t` frames; always a view."""
    nt, c, h, w = frames.shape
    return frames.view(nt // t, t, c, h, w).transpose(1, 2)


def per_frame(function: Callable[[Tensor], Tensor], clips: Clips) -> Others:
    """Apply an image function to every frame."""
    return unfold(function(fold(clips)), clips.shape[2])


def along_time(function: Callable[[Tensor], Tensor], clips: Clips) -> Others:
    """Apply a function to the columns that keeps their width (h w), for example a (3, 1) convolution."""
    n, c, t, h, w = clips.shape
    memory = fold(clips).permute(0, 2, 3, 1)
    columns = function(memory.reshape(n, t, h * w, c).permute(0, 3, 1, 2))
    return columns.reshape(*columns.shape[:3], h, w)


def max_pool_time(clips: Clips, factor: int) -> Others:
    """Max-pool windows of `factor` frames, including a shorter last window (ceil_mode of the published code)."""
    if factor == 1:
        return clips
    return along_time(lambda columns: F.max_pool2d(columns, (factor, 1), (factor, 1), ceil_mode=True), clips)


def stretch_time(clips: Clips, t: int) -> Others:
    """Upsample to `t` frames by nearest neighbor.

    Time and space are not upsampled in one three-dimensional step, whose compiled gradient crashes on CPUs in torch
    2.13.
    """
    if clips.shape[2] == t:
        return clips
    return along_time(lambda columns: F.interpolate(columns, (t, columns.shape[3]), mode="nearest"), clips)
