"""What a step sends to a GPU: counted on meta tensors, which have a device of their own and compute nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tpn_ray.clips import develop, transfer
from tpn_ray.clips.notes import NO_CLIP, PLANES, RGB
from tpn_ray.model.recognizer import ModelConfig
from tpn_ray.recipe import LoopConfig, LossConfig, OptimConfig
from tpn_ray.training import step
from tpn_ray.training.step import MicroBatch, Training

JITTER = ((1.0, 0.1, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


class Transfers(TorchDispatchMode):
    """Lists the operations that copy between the CPU and the device, or that wait for a number from it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [one for one in (*args, out) if isinstance(one, torch.Tensor)]
        copies = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        if copies and len({tensor.device.type for tensor in tensors}) > 1:
            self.found.append(str(func))
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            self.found.append(str(func))
        return out


@contextlib.contextmanager
def transfers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The transfers inside the block, constants made on the device included."""
    make = torch.tensor
    with Transfers() as mode:

        def tensor(*args: Any, **kwargs: Any) -> torch.Tensor:
            made = make(*args, **kwargs)
            if made.device.type == "meta":
                mode.found.append("torch.tensor")
            return made

        monkeypatch.setattr(torch, "tensor", tensor)
        yield mode.found
    monkeypatch.setattr(torch, "tensor", make)


def test_the_counter_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    with transfers(monkeypatch) as found:
        there = torch.zeros(2).to("meta")
        there.copy_(torch.ones(2))
        torch.tensor([1.0], device="meta")
        torch.ones(1).item()
        there + 1
    assert len(found) == 4


@pytest.mark.parametrize("options", [{}, {"sync_batch_norm": 1, "ordered_reduction": True}], ids=["fast", "ordered"])
def test_a_step_sends_nothing(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "autocast", lambda precision, device: contextlib.nullcontext())  # knows no meta device
    model = ModelConfig(backbone="slowonly_toy", classes=5, alpha=(1, 2), dropout=0.3)
    loop = LoopConfig(epochs=1, batch_clips=6, micro_batch_clips=2, **options)
    training = Training(model, LossConfig(lambdas=(0.5,)), OptimConfig(lr=0.05, ema_decay=0.9), loop, "meta")
    clips = [torch.zeros(n, 4, 32, 32, 3, dtype=torch.uint8, device="meta") for n in (2, 1, 0)]
    batches = [
        MicroBatch(i, part, torch.zeros(len(part), 1, dtype=torch.long, device="meta")) for i, part in enumerate(clips)
    ]
    training.train_step(batches, 3)
    with transfers(monkeypatch) as found:
        training.train_step(batches, 3)
    assert found == []


def test_notes_travel_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    notes = [
        NO_CLIP._replace(
            kind=RGB if i == 3 else PLANES,
            frames=8,
            height=100 - 2 * i,
            width=110,
            crop_height=100 - 2 * i,
            crop_width=110 if i % 2 else 60,
            mirrored=bool(i % 2),
            matrix=1,
            jitter=JITTER,
            grey_share=0.1,
        )
        for i in range(8)
    ]
    stored = torch.zeros(8 * 100 * 110 * 3, dtype=torch.uint8, device="meta")
    uploads = []
    monkeypatch.setattr(develop, "upload", lambda array, device: uploads.append(1) or transfer.upload(array, device))
    with transfers(monkeypatch) as found:
        clips = develop.develop(stored, notes, 48)
    assert clips.shape == (8, 8, 48, 48, 3)
    # The one of `upload`, which on a GPU is pinned and waits for nothing; torch.tensor makes a copy on its way.
    assert (len(uploads), found) == (1, ["aten._to_copy.default", "torch.tensor"])
