"""A clip as a batch of frames: the memory layout the whole network runs in. Runs anywhere.

Clips n c t h w are kept in memory in the order n, t, h, w, c (torch: channels_last_3d). That memory reads, without a
copy, as
    frames    (n t) c h w    a batch of images: convolutions and pools of 1xkxk are conv2d and max_pool2d
    columns   n c t (h w)    images whose height is time: convolutions of 3x1x1 and pools over time are conv2d and
                             max_pool2d too
and batch statistics over frames are those over clips. So the network needs neither Conv3d nor MaxPool3d. This buys
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
    """Clips -> frames. A view where the memory is channels-last already, otherwise the one copy of a forward pass."""
    return clips.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def unfold(frames: Frames, t: int) -> Clips:
    """Frames -> clips of `t` frames; always a view."""
    nt, c, h, w = frames.shape
    return frames.view(nt // t, t, c, h, w).transpose(1, 2)


def per_frame(function: Callable[[Tensor], Tensor], clips: Clips) -> Others:
    """Apply an image function to every frame."""
    return unfold(function(fold(clips)), clips.shape[2])


def along_time(function: Callable[[Tensor], Tensor], clips: Clips) -> Others:
    """Apply to the columns a function that leaves their width (h w) alone, for example a (3, 1) convolution."""
    n, c, t, h, w = clips.shape
    memory = fold(clips).permute(0, 2, 3, 1)
    columns = function(memory.reshape(n, t, h * w, c).permute(0, 3, 1, 2))
    return columns.reshape(*columns.shape[:3], h, w)


def max_pool_time(clips: Clips, factor: int) -> Others:
    """Max over windows of `factor` frames; a last, shorter window counts too (ceil_mode of the published code)."""
    if factor == 1:
        return clips
    return along_time(lambda columns: F.max_pool2d(columns, (factor, 1), (factor, 1), ceil_mode=True), clips)


def stretch_time(clips: Clips, t: int) -> Others:
    """Up-sample to `t` frames: nearest neighbour.

    Not time and space in one three-dimensional step, whose compiled gradient crashes on CPUs in torch 2.13.
    """
    if clips.shape[2] == t:
        return clips
    return along_time(lambda columns: F.interpolate(columns, (t, columns.shape[3]), mode="nearest"), clips)
