"""Activations computed again: fewer are kept, and a step has the same bits."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tpn_ray.errors import ConfigError
from tpn_ray.model.recognizer import ModelConfig, build_model
from tpn_ray.model.recompute import recompute_blocks
from tpn_ray.recipe import LoopConfig, LossConfig, OptimConfig
from tpn_ray.training.step import MicroBatch, Training

LOOP = LoopConfig(epochs=1, batch_clips=4, micro_batch_clips=2)


def batches(step: int) -> list[MicroBatch]:
    random = torch.Generator().manual_seed(step)
    clips = [torch.randint(0, 256, (2, 8, 32, 32, 3), dtype=torch.uint8, generator=random) for _ in range(2)]
    return [MicroBatch(i, each, torch.full((2, 1), i)) for i, each in enumerate(clips)]


@pytest.mark.parametrize("backbone", ["slowonly_toy", "tsm_toy", "slowfast_toy"])
def test_steps_and_the_average_have_the_same_bits(backbone: str) -> None:
    torch.set_num_threads(1)
    model = ModelConfig(backbone=backbone, classes=5, alpha=(1, 1), dropout=0.3)
    optim, again = OptimConfig(lr=0.05, ema_decay=0.5), dataclasses.replace(LOOP, recompute=True)
    kept, recomputed = (Training(model, LossConfig(), optim, loop, "cpu") for loop in (LOOP, again))
    for step in range(2):
        for training in (kept, recomputed):
            training.train_step(batches(step), 2)
    for one, other in ((kept.model, recomputed.model), (kept.scored, recomputed.scored)):
        mine, its = one.state_dict(), other.state_dict()
        assert mine.keys() == its.keys()
        assert all(torch.equal(tensor, its[name]) for name, tensor in mine.items())
    clips, labels = batches(3)[0][1:]
    assert torch.equal(kept.evaluate(clips, labels), recomputed.evaluate(clips, labels))


def test_less_is_kept() -> None:
    sizes = []
    for again in (False, True):
        model = build_model(ModelConfig(backbone="slowonly_toy", classes=5, alpha=(1, 1))).train()
        if again:
            assert recompute_blocks(model.backbone) == 4
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            levels = model.backbone(torch.randn(2, 3, 8, 64, 64))
        assert levels
        sizes.append(sum(kept.values()))
    assert sizes[1] < 0.6 * sizes[0]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="recompute=True goes neither with compile"):
        dataclasses.replace(LOOP, recompute=True, compile=True)
    with pytest.raises(ConfigError, match="has no stages of blocks"):
        recompute_blocks(build_model(ModelConfig(backbone="c3d_toy", classes=5, neck="none")).backbone)
