"""Checks before training whether low-precision convolutions can be trusted here. Runs where the network will run.

Some cuDNN versions (9.10.2 among them) silently return wrong numbers from bf16 3D convolutions at large shapes; torch's
CPU kernels have had similar faults. This network makes no 3D convolution, but its 3x1 and 3x3 convolutions go through
the same libraries, so one of each kind is compared with float32 at the shapes that training will use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tpn_ray.errors import ConfigError
from tpn_ray.model.recognizer import Recognizer

TOLERANCE = 0.03
"""Largest credible error of one convolution, relative to its largest result; rounding to bf16 gives 0.5%."""


@dataclass(frozen=True)
class ConvolutionReport:
    """Whether convolutions in a precision can be used; if not, the caller warns and falls back to float32."""

    trusted: bool
    """Whether every convolution agrees with float32."""

    worst: str
    """Name and input shape of the convolution that agrees least."""

    error: float
    """Its error, relative to the largest result; nan counts as infinite."""

    def __str__(self) -> str:
        verdict = "agree" if self.trusted else "do not agree"
        return f"low-precision convolutions {verdict} with float32: {self.worst} is off by {self.error:.1%}"


def convolution_self_test(
    model: Recognizer,
    clips_shape: Sequence[int],
    *,
    precision: torch.dtype = torch.bfloat16,
) -> ConvolutionReport:
    """Compare one convolution of each kind in the network, forward and backward, with float32.

    `clips_shape` is the n c t h w of future batches. The network's device is used, and its weights are left unchanged.
    """
    if len(clips_shape) != 5:
        raise ConfigError(f"clips_shape={tuple(clips_shape)} must be n c t h w")
    worst, error = "none", 0.0
    for name, convolution, shape in largest_of_each_kind(model, clips_shape):
        found = disagreement(convolution, shape, precision)
        if not found <= error:
            worst, error = f"{name} on {tuple(shape)}", found
    return ConvolutionReport(error <= TOLERANCE, worst, error)


def largest_of_each_kind(
    model: Recognizer, clips_shape: Sequence[int]
) -> list[tuple[str, nn.Conv2d, tuple[int, int, int, int]]]:
    """List, for every kernel size, stride, and grouping, the convolution with the most work and its input shape."""
    seen: dict[tuple[object, ...], tuple[int, str, nn.Conv2d, tuple[int, int, int, int]]] = {}
    n, _, t, height, width = clips_shape
    for name, convolution in model.named_modules():
        if not isinstance(convolution, nn.Conv2d):
            continue
        reduction = reduction_before(name)
        high, wide = -(-height // reduction), -(-width // reduction)
        columns = convolution.weight.shape[2:] == (3, 1)
        channels = convolution.in_channels
        shape = (n, channels, t, high * wide) if columns else (n * t, channels, high, wide)
        work = convolution.weight.numel() * n * t * high * wide
        kind = (*convolution.weight.shape[2:], convolution.stride, convolution.groups > 1)
        if kind not in seen or work > seen[kind][0]:
            seen[kind] = (work, name, convolution, shape)
    return [entry[1:] for entry in seen.values()]


def reduction_before(name: str) -> int:
    """Return the factor by which space at the input of a convolution of the network is smaller than in the clip."""
    if name.startswith("backbone.stem"):
        return 1
    if name.startswith("backbone.stages.res"):
        stage, block, part = name.split(".")[2:5]
        own: int = 2 ** int(stage.removeprefix("res"))
        enters = block == "0" and stage != "res2" and part in ("conv1", "conv2", "shortcut")
        return own // 2 if enters else own
    return 16 if name.startswith(("neck.spatial", "auxiliary")) else 32


def disagreement(convolution: nn.Conv2d, shape: tuple[int, int, int, int], precision: torch.dtype) -> float:
    """Return the largest relative difference of result and gradients between the precision and float32."""
    device = convolution.weight.device
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(device).contiguous(memory_format=torch.channels_last)
    results = []
    for enabled in (False, True):
        leaf = x.clone().requires_grad_()
        with torch.autocast(device.type, precision, enabled=enabled):
            y = convolution(leaf)
        weight = torch.randn(y.shape, generator=generator.manual_seed(1)).to(y)
        gradients = torch.autograd.grad(y, (leaf, convolution.weight), weight)
        results.append([part.float() for part in (y.detach(), *gradients)])
    errors = [((a - b).abs().max() / a.abs().max()).item() for a, b in zip(*results, strict=True)]
    return max(error if error == error else float("inf") for error in errors)
