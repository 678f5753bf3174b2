from __future__ import annotations

from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn

from tests import workers
from tpn_ray.model.layers import ConvNorm, SharedStatistics, batch_norm, conv


def gradients(function, x, parameters):  # type: ignore[no-untyped-def]
    x = x.clone().requires_grad_()
    y = function(x)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y, *torch.autograd.grad((y * weight).sum(), [x, *parameters])]


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
    workers.run(_norm_worker, (str(tmp_path / "meeting"), str(tmp_path)), 3)
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
