"""Convolution and batch norm over frames, each by the quickest exact road the device offers. Runs anywhere, torch only.

On CUDA both are torch's own. On a CPU torch's kernels for channels-last memory have weak spots, measured on one core:
  * a 3x3 convolution of stride 2 with many channels (spatial modulation, auxiliary head) spends its time reordering
    75 MB of weights, and multiplies the zeros around the frames: one matrix product per tap, over the outputs that the
    tap reaches, is 1.3 to 4.8 times as fast;
  * the weight gradient of a 3x1 convolution: as one matrix product it is 1.8 to 2.6 times as fast;
  * 1x1 convolutions on few positions, or in groups, or of stride 2: plain or batched matrix products;
  * batch norm adds up in float32 one row after another, which costs digits of its gradients, and goes backward through
    memory slowly: sums in a tree and in blocks are more precise and quicker.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

MANY_CHANNELS = 512
FEW_IMAGES = 16
EXACT = (torch.float32, torch.float64)


class ConvNorm(nn.Module):
    """Convolution, batch norm and, but for the last of a residual branch, ReLU; over frames or columns."""

    def __init__(self, convolution: nn.Conv2d, *, relu: bool = True) -> None:
        super().__init__()
        self.conv = convolution
        self.norm = nn.BatchNorm2d(convolution.out_channels)
        self.relu = relu

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
        y = batch_norm(self.norm, convolve(self.conv, x))
        return F.relu(y, inplace=True) if self.relu else y


def conv(inputs: int, outputs: int, kernel: int | tuple[int, int], *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size (but for its stride)."""
    high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
    return nn.Conv2d(inputs, outputs, (high, wide), stride, (high // 2, wide // 2), groups=groups, bias=False)


def convolve(convolution: nn.Module, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
    """`convolution(x)`, for frames and for columns."""
    assert isinstance(convolution, nn.Conv2d)
    kernel = convolution.weight
    if on_cpu(x) and x.dtype in EXACT and not torch.is_autocast_enabled("cpu"):
        size, strided = tuple(kernel.shape[2:]), convolution.stride == (2, 2)
        if size == (1, 1) and convolution.groups > 1:
            return grouped_product(x, kernel, convolution.groups)
        if size == (1, 1) and (strided or len(x) < FEW_IMAGES):
            return product(x[:, :, ::2, ::2] if strided else x, kernel)
        if size == (3, 1) and convolution.groups == 1:
            return ConvolveColumns.apply(x, kernel)  # type: ignore[no-any-return, no-untyped-call]
        if size == (3, 3) and strided and kernel.shape[1] >= MANY_CHANNELS:
            return ConvolveTaps.apply(x, kernel)  # type: ignore[no-any-return, no-untyped-call]
    result: Tensor = convolution(x)
    return result


def batch_norm(norm: nn.BatchNorm2d, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """`norm(x)`, or, where a `SharedStatistics` is set at `norm.shared`, the same over the clips of several workers."""
    rows = x.numel() // x.shape[1]
    shared: SharedStatistics | None = getattr(norm, "shared", None)
    if norm.training and shared is not None:
        y, mean, variance, total = BatchNormOverWorkers.apply(x, norm.weight, norm.bias, norm.eps, shared)  # type: ignore[no-untyped-call]
        remember(norm, mean, variance, rows=total)
        return y  # type: ignore[no-any-return]
    if norm.training and on_cpu(x) and x.dtype == torch.float32 and rows > 1:  # torch refuses a single row
        y, mean, variance = BatchNormRows.apply(x, norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
        remember(norm, mean, variance, rows=rows)
        return y  # type: ignore[no-any-return]
    result: Tensor = norm(x)
    return result


@torch.no_grad()
def remember(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, *, rows: int | Tensor) -> None:
    """Move the running statistics as the module itself would; not at all for a tensor that says 0 rows."""
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    assert norm.momentum is not None
    norm.num_batches_tracked.add_(1)
    if isinstance(rows, Tensor):  # without a look at its value, for which a GPU would have to be waited for
        unbiased, momentum = rows / (rows - 1).clamp(min=1), norm.momentum * rows.clamp(max=1)
        norm.running_mean += momentum * (mean - norm.running_mean)
        norm.running_var += momentum * (variance * unbiased - norm.running_var)
        return
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance * (rows / max(rows - 1, 1)), norm.momentum)


def on_cpu(x: Tensor) -> bool:
    """Whether the CPU's special roads are open: not for shape-only tensors, and a compiler finds its own."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def rows_of(x: Tensor) -> Tensor:
    """n c h w in channels-last memory -> (n h w) c, one row per position; a view."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def grouped_product(x: Tensor, kernel: Tensor, groups: int) -> Tensor:
    """A 1x1 convolution in groups."""
    n, c, h, w = x.shape
    by_group = rows_of(x).view(-1, groups, c // groups).transpose(0, 1)
    mixed = torch.bmm(by_group, kernel.view(groups, -1, c // groups).transpose(1, 2))
    return mixed.transpose(0, 1).reshape(n, h, w, kernel.shape[0]).permute(0, 3, 1, 2)


def product(x: Tensor, kernel: Tensor) -> Tensor:
    """A 1x1 convolution, for which images are only rows: with one thread torch gives oneDNN no fewer than 16 images."""
    n, _, h, w = x.shape
    rows = rows_of(x)
    if len(rows) % FEW_IMAGES or len(rows) < 64 * FEW_IMAGES:
        mixed = F.linear(rows, kernel.flatten(1))
    else:
        images = rows.view(FEW_IMAGES, 1, -1, rows.shape[1]).permute(0, 3, 1, 2)
        mixed = rows_of(F.conv2d(images, kernel))
    return mixed.view(n, h, w, -1).permute(0, 3, 1, 2)


class ConvolveTaps(torch.autograd.Function):
    """A 3x3 convolution of stride 2 and padding 1, tap by tap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(x, kernel)
        memory, outputs = x.permute(0, 2, 3, 1), kernel.shape[0]
        n, h, w, c = memory.shape
        y = memory.new_zeros(n, (h + 1) // 2, (w + 1) // 2, outputs)
        for i, j, seen, reached in taps(h, w):
            patch = memory[seen]
            y[reached] += (patch.reshape(-1, c) @ kernel[:, :, i, j].T).view(*patch.shape[:3], outputs)
        return y.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, kernel = ctx.saved_tensors
        memory, gradient = x.permute(0, 2, 3, 1), gradients[0].permute(0, 2, 3, 1)
        outputs, c = kernel.shape[:2]
        for_x = torch.zeros_like(memory) if ctx.needs_input_grad[0] else None
        for_kernel = memory.new_zeros(outputs, 3, 3, c) if ctx.needs_input_grad[1] else None
        for i, j, seen, reached in taps(*memory.shape[1:3]):
            part = gradient[reached]
            rows = part.reshape(-1, outputs)
            if for_x is not None:
                for_x[seen] += (rows @ kernel[:, :, i, j]).view(*part.shape[:3], c)
            if for_kernel is not None:
                torch.mm(rows.T, memory[seen].reshape(-1, c), out=for_kernel[:, i, j])
        return (
            None if for_x is None else for_x.permute(0, 3, 1, 2),
            None if for_kernel is None else for_kernel.permute(0, 3, 1, 2),
        )


Region = tuple[slice, slice, slice]


def taps(h: int, w: int) -> list[tuple[int, int, Region, Region]]:
    """Each tap of that convolution: its place in the kernel, the inputs (n h w) it sees and the outputs it reaches."""
    every = slice(None)
    places = [(i, j, reach(h, i), reach(w, j)) for i in range(3) for j in range(3)]
    return [
        (i, j, (every, down[0], along[0]), (every, down[1], along[1])) for i, j, down, along in places if down and along
    ]


def reach(size: int, tap: int) -> tuple[slice, slice] | None:
    """In one dimension: the inputs that a tap sees within the frame, and the outputs it contributes to."""
    first, stop = int(tap == 0), min((size + 1) // 2, (size - tap) // 2 + 1)
    if first >= stop:
        return None
    return slice(2 * first + tap - 1, 2 * stop + tap - 2, 2), slice(first, stop)


class ConvolveColumns(torch.autograd.Function):
    """A 3x1 convolution, padding 1; only its weight gradient is not torch's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(x, kernel)
        return F.conv2d(x, kernel, padding=(1, 0))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, kernel = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        for_x, for_kernel = None, None
        if ctx.needs_input_grad[0]:
            for_x = torch.ops.aten.convolution_backward(
                gradient, x, kernel, None, [1, 1], [1, 0], [1, 1], False, [0, 0], 1, [True, False, False]
            )[0]
        if ctx.needs_input_grad[1]:
            outputs, channels = kernel.shape[:2]
            padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, 0, 1, 1))
            seen = torch.cat((padded[:, :-2], padded[:, 1:-1], padded[:, 2:]), dim=-1).view(-1, 3 * channels)
            for_kernel = (rows_of(gradient).T @ seen).view(outputs, 3, 1, channels).permute(0, 3, 1, 2)
        return for_x, for_kernel


class BatchNormRows(torch.autograd.Function):
    """Batch norm in training over channels-last memory; also gives the batch's mean and (biased) variance."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        memory = x.contiguous(memory_format=torch.channels_last)
        mean, variance = statistics(rows_of(memory))
        y = F.batch_norm(memory, mean, variance, weight, bias, training=False, eps=eps)
        ctx.save_for_backward(memory, weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, variance = ctx.saved_tensors
        rows = rows_of(x)
        gradient = rows_of(gradients[0].contiguous(memory_format=torch.channels_last))
        scale = (variance.double() + ctx.eps).rsqrt()
        result = rows * gradient
        for_bias = gradient.sum(0).double()
        # sum of gradient * (x - mean) / deviation; small next to its parts, so the parts are sums in a tree
        for_weight = (result.sum(0).double() - mean * for_bias) * scale
        # weight * scale * (gradient - mean(gradient) - normalised x * mean(gradient * normalised x))
        count, slope = len(rows), weight.double() * scale
        along_x = -slope * scale * for_weight / count
        constant = -slope * for_bias / count - along_x * mean
        torch.addcmul(constant.float(), rows, along_x.float(), out=result)
        result.addcmul_(gradient, slope.float())
        shaped = result.view(x.shape[0], x.shape[2], x.shape[3], x.shape[1]).permute(0, 3, 1, 2)
        return shaped, for_weight.float(), for_bias.float(), None


def statistics(rows: Float[Tensor, "rows c"]) -> tuple[Float[Tensor, "c"], Float[Tensor, "c"]]:
    """Mean and biased variance per channel: of up to 64 interleaved blocks by torch's kernel, then of the blocks."""
    count, channels = rows.shape
    blocks = math.gcd(count, 64)
    split = rows.view(1, count // blocks, 1, blocks * channels).permute(0, 3, 1, 2)
    means, variances = (
        part.view(blocks, channels).double() for part in torch.batch_norm_update_stats(split, None, None, 0)
    )
    mean = means.mean(0)
    variance = variances.mean(0) + (means - mean).square().mean(0)
    return mean.float(), variance.float()


class SharedStatistics:
    """The workers that take BatchNorm's statistics together (SyncBN), each with a micro-batch of the same turn.

    torch's SyncBatchNorm runs on CUDA only, and adds up its gradients in whatever order an all-reduce takes.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.counts = True
        """Whether this worker's clips of the moment are seen by the others: not those in place of unusable ones."""

    def gather(self, mine: Float[Tensor, "c"]) -> Float[Tensor, "r c"]:
        """Every worker's, in the order of their ranks."""
        everybody = [torch.empty_like(mine) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(everybody, mine, group=self.group)
        return torch.stack(everybody)


class BatchNormOverWorkers(torch.autograd.Function):
    """Batch norm in training over the rows of all workers of a group; also gives the mean, the (biased) variance and
    the number of these rows. The same bits on every worker, as sums are in the order of ranks."""

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
