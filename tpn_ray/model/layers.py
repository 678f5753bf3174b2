"""Convolution and batch norm over frames, columns, or clips, optionally across workers (SyncBN). Runs anywhere, torch
only.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from tpn_ray.model.frames import along_time, fold, per_frame, unfold

Triple = tuple[int, int, int]
"""Frames, height, and width."""
POINT: Triple = (1, 1, 1)


class ConvNorm(nn.Module):
    """Convolution, batch norm, and ReLU (omitted at the end of a residual branch), over frames or columns."""

    def __init__(self, convolution: nn.Conv2d, *, relu: bool = True) -> None:
        super().__init__()
        self.conv = convolution
        self.norm: nn.BatchNorm2d | None = nn.BatchNorm2d(convolution.out_channels)
        self.relu = relu

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
        convolved = self.conv(x)
        y = convolved if self.norm is None else batch_norm(self.norm, convolved)
        return F.relu(y, inplace=True) if self.relu else y


def named(**layers: nn.Module) -> nn.Sequential:
    """Chain layers under names, which are part of their weights' names."""
    return nn.Sequential(OrderedDict(layers))


def conv(inputs: int, outputs: int, kernel: int | tuple[int, int], *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Make a convolution without bias that keeps the size (except for its stride)."""
    high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
    return nn.Conv2d(inputs, outputs, (high, wide), stride, (high // 2, wide // 2), groups=groups, bias=False)


class ConvNorm3d(nn.Module):
    """Convolution over time and space, batch norm, and ReLU, over clips.

    ReLU is omitted at the end of a residual branch, batch norm where `eps` is None.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Triple,
        *,
        stride: Triple = POINT,
        groups: int = 1,
        bias: bool = False,
        eps: float | None = 1e-5,
        momentum: float = 0.1,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv = conv3d(inputs, outputs, kernel, stride=stride, groups=groups, bias=bias)
        self.norm = None if eps is None else nn.BatchNorm2d(outputs, eps, momentum)
        self.time_stride = stride[0]
        self.relu = relu

    def forward(self, clips: Float[Tensor, "n c t h w"]) -> Float[Tensor, "n k s i j"]:
        convolved = convolve(self.conv, clips, self.time_stride)
        y = fold(convolved)
        if self.norm is not None:
            y = batch_norm(self.norm, y)
        return unfold(F.relu(y, inplace=True) if self.relu else y, convolved.shape[2])


def conv3d(
    inputs: int, outputs: int, kernel: Triple, *, stride: Triple = POINT, groups: int = 1, bias: bool = False
) -> nn.Conv2d | nn.Conv3d:
    """Make a convolution that keeps the size (except for its stride), for `convolve`.

    It is two-dimensional where the kernel is: over frames if 1xkxk, over columns if kx1x1 (see frames.py).
    """
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    if kernel[0] == 1:
        return nn.Conv2d(inputs, outputs, kernel[1:], stride[1:], padding[1:], groups=groups, bias=bias)
    if kernel[1:] == stride[1:] == (1, 1):
        return nn.Conv2d(inputs, outputs, kernel[:2], stride[:2], padding[:2], groups=groups, bias=bias)
    return nn.Conv3d(inputs, outputs, kernel, stride, padding, groups=groups, bias=bias)


def convolve(
    convolution: nn.Conv2d | nn.Conv3d, clips: Float[Tensor, "n c t h w"], time_stride: int = 1
) -> Float[Tensor, "n k s i j"]:
    """Apply a convolution of `conv3d`; one over frames takes every `time_stride`-th frame, the others stride on their
    own.
    """
    if isinstance(convolution, nn.Conv3d):
        return convolution(clips)  # type: ignore[no-any-return]
    high, wide = convolution.kernel_size
    if high > wide:
        return along_time(convolution, clips)
    return per_frame(convolution, clips[:, :, ::time_stride])


def batch_norm(norm: nn.BatchNorm2d, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Apply `norm`, over the clips of several workers if a `SharedStatistics` is set at `norm.shared`."""
    shared: SharedStatistics | None = getattr(norm, "shared", None)
    if norm.training and shared is not None:
        y, mean, variance, rows = BatchNormOverWorkers.apply(x, norm.weight, norm.bias, norm.eps, shared)  # type: ignore[no-untyped-call]
        remember(norm, mean, variance, rows)
        return y  # type: ignore[no-any-return]
    result: Tensor = norm(x)
    return result


@torch.no_grad()
def remember(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, rows: Tensor) -> None:
    """Update the running statistics as the module itself would, or leave them unchanged if there are 0 rows."""
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    assert norm.momentum is not None
    norm.num_batches_tracked.add_(1)
    # Branching on the number of rows would have to wait for the GPU.
    unbiased, momentum = rows / (rows - 1).clamp(min=1), norm.momentum * rows.clamp(max=1)
    norm.running_mean += momentum * (mean - norm.running_mean)
    norm.running_var += momentum * (variance * unbiased - norm.running_var)


class SharedStatistics:
    """The workers that share BatchNorm's statistics (SyncBN), each with a micro-batch of the same turn.

    torch's SyncBatchNorm runs only on CUDA, and sums its gradients in whatever order an all-reduce uses.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.counts = True
        """Whether the other workers see this worker's current clips; not set for clips in place of unusable ones."""

    def gather(self, mine: Float[Tensor, "c"]) -> Float[Tensor, "r c"]:
        """Gather the tensors of all workers, in the order of their ranks."""
        everybody = [torch.empty_like(mine) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(everybody, mine, group=self.group)
        return torch.stack(everybody)


class BatchNormOverWorkers(torch.autograd.Function):
    """Batch norm in training over the rows of all workers of a group.

    It also returns the mean, the (biased) variance, and the number of these rows. Every worker gets the same bits,
    because sums are taken in the order of ranks.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, shared: SharedStatistics
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        variance, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
        count = torch.full_like(mean[:1], float(shared.counts * x.numel() // x.shape[1]))
        parts = shared.gather(torch.cat((count, mean, variance)).double())
        counts, (means, variances) = parts[:, :1], parts[:, 1:].chunk(2, dim=1)
        total = counts.sum()
        shares = counts / total.clamp(min=1)
        mean = (shares * means).sum(0)
        variance = (shares * (variances + (means - mean).square())).sum(0)
        ctx.save_for_backward(x, weight, mean, variance, total)
        ctx.eps, ctx.shared, ctx.counts = eps, shared, shared.counts
        y = F.batch_norm(x, mean.float(), variance.float(), weight, bias, training=False, eps=eps)
        results = mean.float(), variance.float(), total.float()
        ctx.mark_non_differentiable(*results)
        return y, *results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, mean, variance, total = ctx.saved_tensors

        def along(channels: Tensor) -> Tensor:
            return channels.float().view(1, -1, 1, 1)

        scale, gradient = (variance + ctx.eps).rsqrt(), gradients[0].float() * ctx.counts
        normalised = (x.float() - along(mean)) * along(scale)
        for_bias, for_weight = gradient.sum((0, 2, 3)), (gradient * normalised).sum((0, 2, 3))
        means = ctx.shared.gather(torch.cat((for_bias, for_weight)).double()).sum(0) / total.clamp(min=1)
        constant, slope = means.chunk(2)
        for_x = along(weight * scale) * (gradient - along(constant) - normalised * along(slope))
        return for_x.to(x.dtype) * ctx.counts, for_weight, for_bias, None, None
