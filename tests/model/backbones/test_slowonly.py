from __future__ import annotations

import torch

from tpn_ray.model.backbones.resnet2d import R50, TOY
from tpn_ray.model.backbones.slowonly import slowonly


def test_only_res4_and_res5_look_along_time() -> None:
    with torch.device("meta"):
        net = slowonly(R50, 5)
    kernels = {name: tuple(p.shape[2:]) for name, p in net.named_parameters() if name.endswith("conv1.conv.weight")}
    for name, kernel in kernels.items():
        assert kernel == ((3, 1) if "res4" in name or "res5" in name else (1, 1)), name


def test_time_is_never_strided_and_reaches_one_frame_per_inflated_block() -> None:
    net = slowonly(TOY, 5).eval()
    clip = torch.randn(1, 3, 8, 32, 32)
    changed = clip.clone()
    changed[:, :, 0] += 1
    a, b = net(clip), net(changed)
    differs = {
        stage: [not torch.allclose(a[stage][:, :, i], b[stage][:, :, i], atol=1e-5) for i in range(8)]
        for stage in (3, 4, 5)
    }
    assert differs[3] == [True] + [False] * 7
    assert differs[4] == [True] * 2 + [False] * 6
    assert differs[5] == [True] * 3 + [False] * 5
