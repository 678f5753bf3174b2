from __future__ import annotations

import pytest
import torch
from torch import nn

from tpn_ray.model import convolution_check
from tpn_ray.model.convolution_check import convolution_self_test, largest_of_each_kind
from tpn_ray.model.recognizer import ModelConfig, build_model

TOY = ModelConfig(backbone="slowonly_toy", classes=5, alpha=(4, 8))


def test_sound_libraries_are_trusted() -> None:
    model = build_model(TOY)
    before = [p.clone() for p in model.parameters()]
    report = convolution_self_test(model, (2, 3, 8, 32, 32))
    assert report.trusted
    assert 0 < report.error < convolution_check.TOLERANCE
    assert "agree" in str(report)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("fault", [1.1, float("nan")])
def test_a_silent_fault_is_found_and_named(fault: float, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = nn.Conv2d.forward

    def faulty(convolution: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        y = sound(convolution, x)
        return y * fault if y.dtype == torch.bfloat16 and convolution.kernel_size == (3, 1) else y

    monkeypatch.setattr(nn.Conv2d, "forward", faulty)
    report = convolution_self_test(build_model(TOY), (2, 3, 8, 32, 32))
    assert not report.trusted
    assert report.error > convolution_check.TOLERANCE
    assert "do not agree" in str(report)
    assert "conv1" in report.worst or "neck" in report.worst


def test_every_kind_of_convolution_is_tried_at_its_own_shape() -> None:
    kinds = {name: shape for name, _, shape in largest_of_each_kind(build_model(TOY), (2, 3, 8, 48, 48))}
    assert kinds["backbone.stem.conv"] == (16, 3, 48, 48)
    assert kinds["neck.temporal.0"] == (2, 256, 8, 4)
    assert kinds["backbone.stages.res4.0.conv1.conv"] == (2, 64, 8, 36)
    assert kinds["auxiliary.0.deepen.conv"] == (16, 128, 3, 3)


def test_shapes_of_something_else_are_refused() -> None:
    with pytest.raises(ValueError, match="must be n c t h w"):
        convolution_self_test(build_model(TOY), (3, 32, 32))
