"""Checks before training whether low-precision convolutions can be trusted here. Runs where the network will run.

Some cuDNN versions (9.10.2 among them) silently return wrong numbers from bf16 3D convolutions at large shapes; torch's
CPU kernels have had similar faults. So one convolution of each kind is compared with float32 at the shapes that
training will use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tpn_ray.errors import ConfigError
from tpn_ray.model.recognizer import Recognizer, build_model

Convolution = nn.Conv2d | nn.Conv3d

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
) -> list[tuple[str, Convolution, tuple[int, ...]]]:
    """List, for every kernel size, stride, and grouping, the convolution with the most work and its input shape."""
    convolutions = dict(model.named_modules())
    seen: dict[tuple[object, ...], tuple[int, str, Convolution, tuple[int, ...]]] = {}
    for name, shape in input_shapes(model, clips_shape).items():
        convolution = convolutions[name]
        assert isinstance(convolution, Convolution)
        work = convolution.weight.numel() * math.prod(shape) // shape[1]
        kind = (*convolution.weight.shape[2:], convolution.stride, convolution.groups > 1)
        if kind not in seen or work > seen[kind][0]:
            seen[kind] = (work, name, convolution, shape)
    return [entry[1:] for entry in seen.values()]


def input_shapes(model: Recognizer, clips_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return the shape of what enters each convolution in training, by its name. Nothing is computed."""
    shapes: dict[str, tuple[int, ...]] = {}
    with torch.device("meta"):
        shadow, clips = build_model(model.config), torch.empty(*clips_shape)
    for name, module in shadow.named_modules():
        if isinstance(module, Convolution):
            module.register_forward_pre_hook(lambda _, inputs, name=name: shapes.update({name: tuple(inputs[0].shape)}))
    shadow(clips)
    return shapes


def disagreement(convolution: Convolution, shape: tuple[int, ...], precision: torch.dtype) -> float:
    """Return the largest relative difference of result and gradients between the precision and float32."""
    device = convolution.weight.device
    generator = torch.Generator().manual_seed(0)
    memory = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    x = torch.randn(shape, generator=generator).to(device).contiguous(memory_format=memory)
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
