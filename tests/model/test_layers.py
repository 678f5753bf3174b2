from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing, nn

from tpn_ray.model.layers import MANY_CHANNELS, ConvNorm, SharedStatistics, batch_norm, conv, convolve

CONVOLUTIONS = {
    "columns": (conv(6, 4, (3, 1)), (2, 6, 5, 9)),
    "one frame": (conv(6, 4, (3, 1)), (2, 6, 1, 9)),
    "grouped": (conv(16, 8, 1, groups=4), (3, 16, 2, 5)),
    "taps": (conv(MANY_CHANNELS, 8, 3, stride=2), (2, MANY_CHANNELS, 5, 4)),
    "taps on a pixel": (conv(MANY_CHANNELS, 8, 3, stride=2), (2, MANY_CHANNELS, 1, 1)),
    "taps on a line": (conv(MANY_CHANNELS, 8, 3, stride=2), (2, MANY_CHANNELS, 2, 1)),
    "1x1": (conv(6, 4, 1), (2, 6, 5, 9)),
    "1x1, many rows": (conv(6, 4, 1), (2, 6, 32, 16)),
    "1x1, many images": (conv(6, 4, 1), (17, 6, 5, 9)),
    "1x1, stride 2": (conv(6, 4, 1, stride=2), (2, 6, 5, 4)),
    "plain": (conv(6, 4, 3, stride=2), (2, 6, 5, 9)),
}


def gradients(function, x, parameters):  # type: ignore[no-untyped-def]
    x = x.clone().requires_grad_()
    y = function(x)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y, *torch.autograd.grad((y * weight).sum(), [x, *parameters])]


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_convolutions_equal_torchs(name: str, dtype: torch.dtype) -> None:
    layer, shape = CONVOLUTIONS[name]
    layer = layer.to(dtype)
    x = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
    ours = gradients(lambda x: convolve(layer, x), x, [layer.weight])
    theirs = gradients(layer, x, [layer.weight])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 6, 5, 7), (1, 3, 1, 5), (2, 8, 16, 16)])
def test_batch_norm_equals_torchs_in_values_gradients_and_memory(shape: tuple[int, ...]) -> None:
    ours, theirs = nn.BatchNorm2d(shape[1]), nn.BatchNorm2d(shape[1]).double()
    for norm in (ours, theirs):
        nn.init.uniform_(norm.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(2))
    theirs.weight.data.copy_(ours.weight)
    x = 3 + torch.randn(shape).contiguous(memory_format=torch.channels_last)
    a = gradients(lambda x: batch_norm(ours, x), x, list(ours.parameters()))
    b = gradients(theirs, x.double(), list(theirs.parameters()))
    for left, right in zip(a, b, strict=True):
        torch.testing.assert_close(left.double(), right, rtol=1e-4, atol=2e-5)
    for (name, left), right in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(left.double(), right.double(), rtol=1e-5, atol=1e-6, msg=name)


def test_batch_norm_adds_up_more_precisely_than_torchs_channels_last_kernel() -> None:
    x = (1 + torch.randn(8, 16, 56, 56)).contiguous(memory_format=torch.channels_last)
    exact = gradients(nn.BatchNorm2d(16).double(), x.double(), [])[1]
    ours, torchs = nn.BatchNorm2d(16), nn.BatchNorm2d(16)
    error = [(gradients(f, x, [])[1].double() - exact).abs().max() for f in (lambda x: batch_norm(ours, x), torchs)]
    assert error[0] < 3e-6
    assert error[0] <= error[1] * 1.05


def test_batch_norm_of_a_single_position_is_refused_as_by_torch() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batch_norm(nn.BatchNorm2d(3), torch.randn(1, 3, 1, 1))


def test_batch_norm_in_evaluation_uses_what_it_remembers() -> None:
    layer = ConvNorm(conv(3, 4, 1)).eval()
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(layer(x), torch.relu(layer.norm(layer.conv(x))))
    assert layer.norm.num_batches_tracked == 0


def test_relu_can_be_left_out() -> None:
    layer = ConvNorm(conv(3, 4, 1), relu=False)
    assert layer(torch.randn(2, 3, 4, 4)).min() < 0


def _norm_worker(rank: int, meeting: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=3)
    norm = nn.BatchNorm2d(4)
    shared = SharedStatistics(dist.new_group([0, 1, 2]))
    norm.shared = shared  # type: ignore[assignment]
    shared.counts = rank != 1
    x = torch.load(Path(folder) / "x.pt")[rank]
    y, for_x, *rest = gradients(lambda x: batch_norm(norm, x), x, [norm.weight, norm.bias])
    if rank == 1:
        assert not any(gradient.any() for gradient in (for_x, *rest))
    torch.save((y, for_x, *rest, norm.running_mean, norm.running_var), Path(folder) / f"{rank}.pt")
    shared.counts = False
    before = norm.running_mean.clone(), norm.running_var.clone()  # type: ignore[union-attr]
    assert torch.isfinite(batch_norm(norm, x)).all()
    assert all(torch.equal(a, b) for a, b in zip(before, (norm.running_mean, norm.running_var), strict=True))
    dist.destroy_process_group()


def test_batch_norm_over_workers_is_batch_norm_over_the_clips_that_count(tmp_path: Path) -> None:
    x = [torch.randn(n, 4, 3, 2) * (n + 1) + n for n in (2, 1, 3)]  # the second worker has nothing usable
    torch.save(x, tmp_path / "x.pt")
    multiprocessing.spawn(_norm_worker, args=(str(tmp_path / "meeting"), str(tmp_path)), nprocs=3)
    one, _, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(3))
    norm = nn.BatchNorm2d(4).double()
    first, second = (x[i].double().requires_grad_() for i in (0, 2))
    whole = norm(torch.cat((first, second)))
    seeds = [torch.randn(part.shape, generator=torch.Generator().manual_seed(1)) for part in (first, second)]
    (whole * torch.cat(seeds)).sum().backward()
    expected = [
        [y, part.grad, norm.running_mean, norm.running_var]
        for y, part in zip(whole.detach().split((2, 3)), (first, second), strict=True)
    ]
    for mine, theirs in zip((one, other), expected, strict=True):
        for a, b in zip((mine[0], mine[1], mine[4], mine[5]), theirs, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((one[2] + other[2]).double(), norm.weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close((one[3] + other[3]).double(), norm.bias.grad, rtol=1e-4, atol=1e-4)
