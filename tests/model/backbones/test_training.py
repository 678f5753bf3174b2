"""Every kind of backbone is trained, resumed, and exported, with and without the pyramid."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tpn_ray.clips.augment import AugmentConfig
from tpn_ray.clips.sampling import ClipConfig
from tpn_ray.model.backbones import BACKBONES
from tpn_ray.model.recognizer import ModelConfig, build_model
from tpn_ray.predict.export import export
from tpn_ray.predict.predictor import Predictor
from tpn_ray.recipe import LoopConfig, LossConfig, OptimConfig, Recipe
from tpn_ray.training.step import MicroBatch, Training

TOYS = [name for name in BACKBONES if name.endswith("_toy")]
FRAMES, PX = 16, 48


def config(name: str, neck: Any) -> ModelConfig:
    return ModelConfig(backbone=name, classes=3, neck=neck, alpha=(1, 2) if name != "trn_toy" else (1, 1), dropout=0.2)


def training(name: str, neck: Any) -> Training:
    model = config(name, neck)
    loss = LossConfig(lambdas=(0.5,) * model.auxiliary_count)
    return Training(model, loss, OptimConfig(ema_decay=0.5), LoopConfig(batch_clips=2, micro_batch_clips=2), "cpu")


def batch(step: int) -> list[MicroBatch]:
    random = torch.Generator().manual_seed(step)
    clips = torch.randint(0, 256, (2, FRAMES, PX, PX, 3), dtype=torch.uint8, generator=random)
    return [MicroBatch(0, clips, torch.tensor([[0], [2]]))]


@pytest.mark.parametrize("neck", ["tpn", "none"])
@pytest.mark.parametrize("name", TOYS)
def test_a_resumed_training_has_the_same_bits(name: str, neck: Any) -> None:
    whole = training(name, neck)
    for step in range(2):
        whole.train_step(batch(step), 4)
    saved = copy.deepcopy(whole.state())
    again = training(name, neck)
    again.load(*saved, 2)
    ends = []
    for one in (whole, again):
        one.train_step(batch(2), 4)
        ends.append(one.state())
    for mine, its in zip(*ends, strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=0, equal_nan=True)


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("neck", ["tpn", "none"])
@pytest.mark.parametrize("name", TOYS)
def test_the_exported_program_gives_the_same_probabilities(name: str, neck: Any, suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = config(name, neck)
    recipe = Recipe(
        clip=ClipConfig(frames=FRAMES),
        augment=AugmentConfig(crop_px=PX, test_short_side_px=PX),
        model=model,
        loss=LossConfig(lambdas=(0.5,) * model.auxiliary_count),
    )
    predictor = Predictor(build_model(model), recipe, {"action": ("a", "b", "c")}, threads=1)
    clips = np.random.default_rng(0).integers(0, 256, (3, FRAMES, PX, PX, 3), dtype=np.uint8)
    assert export(predictor, clips, f"{tmp_path}/program{suffix}") < 1e-4
