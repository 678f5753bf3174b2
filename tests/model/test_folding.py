"""Networks whose batch norm is folded into their convolutions compute the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tpn_ray.model.folding import fold_batch_norms
from tpn_ray.model.recognizer import ModelConfig, build_model


@pytest.mark.parametrize("backbone", ["slowonly_toy", "tsm_toy", "slowfast_toy", "s3d_toy"])
def test_a_folded_network_computes_the_same(backbone: str) -> None:
    torch.manual_seed(0)
    alpha = (1, 2) if backbone in ("slowonly_toy", "tsm_toy") else (1, 1)
    model = build_model(ModelConfig(backbone=backbone, classes=5, alpha=alpha)).double().eval()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert tensor is not None
            nn.init.uniform_(tensor, 0.5, 1.5)
    clips = torch.randn(2, 3, 8, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = model(clips).action
        assert fold_batch_norms(model) == len(norms)
        found = model(clips).action
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert expected.std() > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
