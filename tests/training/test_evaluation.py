"""What a run's evaluation makes of the validation videos."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch.nn import functional as F

from tests import workers
from tpn_ray import recipes
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import ConfigError, TrainingError
from tpn_ray.metrics import mean_average_precision
from tpn_ray.model.recognizer import ModelConfig
from tpn_ray.recipe import LoopConfig, LossConfig, OptimConfig, replace_fields
from tpn_ray.score import called, score_of
from tpn_ray.training.evaluation import evaluate
from tpn_ray.training.run_plan import recipe_for
from tpn_ray.training.step import MicroBatch, Training

MODEL = ModelConfig(backbone="slowonly_toy", classes=5, alpha=(1, 2), multi_label=True)


def batches(count: int = 3) -> list[MicroBatch]:
    random = torch.Generator().manual_seed(0)
    clips = torch.randint(0, 256, (count, 4, 4, 32, 32, 3), dtype=torch.uint8, generator=random)
    labels = torch.randint(0, 2, (count, 4, 5), generator=random)
    return [MicroBatch(number, *one) for number, one in enumerate(zip(clips, labels, strict=True))]


def trained(model: ModelConfig = MODEL, **loss: float) -> Training:
    torch.set_num_threads(1)
    loop = LoopConfig(epochs=1, batch_clips=8, micro_batch_clips=4)
    return Training(model, LossConfig(lambdas=(0.5,), **loss), OptimConfig(lr=0.05), loop, "cpu")  # type: ignore[arg-type]


def test_map_of_all_batches_at_once() -> None:
    training, given = trained(), batches()
    nothing = MicroBatch(0, given[0].clips[:0], given[0].labels[:0])
    scores = evaluate(training, [*given, nothing])
    logits = torch.cat([training.score(one.clips) for one in given])
    labels = torch.cat([one.labels for one in given])
    assert scores["val_map"] == mean_average_precision(torch.sigmoid(logits).numpy(), labels.numpy().astype(np.bool_))
    assert scores["val_loss"] == pytest.approx(F.binary_cross_entropy_with_logits(logits, labels.float()).item())
    assert (scores["val_videos"], called(scores), score_of(scores)) == (12, "mAP", scores["val_map"])
    assert set(scores) == {"val_loss", "val_map", "val_videos"}
    with pytest.raises(TrainingError, match="no validation video could be used"):
        evaluate(training, [nothing])
    with pytest.raises(TrainingError, match="mAP needs one"):
        evaluate(training, [given[0]._replace(labels=torch.zeros_like(given[0].labels))])


def _rank(rank: int, meeting: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    scores = evaluate(trained(), batches()[:2] if rank == 0 else batches()[2:])
    Path(folder, str(rank)).write_text(json.dumps(scores))
    dist.destroy_process_group()


def test_workers_score_their_shares_and_have_the_map_of_all(tmp_path: Path) -> None:
    """Shares need not be equal."""
    workers.run(_rank, [str(tmp_path / "meeting"), str(tmp_path)], 2)
    first, second = (json.loads((tmp_path / str(rank)).read_text()) for rank in range(2))
    assert first == second == evaluate(trained(), batches())


def test_one_class_a_video_has_top1() -> None:
    training = trained(dataclasses.replace(MODEL, multi_label=False))
    scores = evaluate(training, [one._replace(labels=one.labels[:, :1]) for one in batches()])
    assert set(scores) == {"val_loss", "val_top1", "val_top5", "val_videos"}
    assert (scores["val_top5"], scores["val_videos"]) == (1.0, 12)


def test_steps_learn_the_classes_of_each_clip() -> None:
    """Mixed clips, too; a clip whose best class is one of its own is a hit."""
    for loss in ({}, {"mixup": 0.8, "cutmix": 1.0}):
        training, given = trained(**loss), batches(2)
        before = evaluate(training, given)["val_loss"]
        for _ in range(12):
            sums = training.train_step(given, 12)
        assert evaluate(training, given)["val_loss"] < before
        assert 0 <= int(sums.hits) <= sums.clips == 8


def test_the_dataset_decides_and_what_makes_no_sense_is_refused(manifest: Manifest) -> None:
    several = dataclasses.replace(manifest, multi_label=True)
    assert recipe_for(recipes.toy(), several).model.multi_label
    assert not recipe_for(replace_fields(recipes.toy(), {"model.multi_label": True}), manifest).model.multi_label
    for field, value in (("loss.label_smoothing", 0.1), ("loop.class_balance", "equal")):
        with pytest.raises(ConfigError, match="is for one class a video"):
            recipe_for(replace_fields(recipes.toy(), {field: value}), several)
    with pytest.raises(ConfigError, match="go with one label set"):
        ModelConfig(classes=(3, 4), multi_label=True)
