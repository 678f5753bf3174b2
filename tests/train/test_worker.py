from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tpn_ray import recipes
from tpn_ray.clips.manifest import load_manifest
from tpn_ray.data import rows
from tpn_ray.errors import TrainingError
from tpn_ray.model.self_test import ConvolutionReport
from tpn_ray.train import driver, worker
from tpn_ray.train.events import BadVideos, Event, Notice, Progress
from tpn_ray.train.step import StepSums, Training


class Told:
    """Stands where the mailbox actor's handle would: `put.remote(event)`."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.put = self
        self.remote = self.events.append


@pytest.fixture
def job(toy_folder: Path) -> worker.Job:
    manifest = load_manifest(str(toy_folder))
    recipe = driver.recipe_for(recipes.toy(), manifest)
    plan = driver.make_plan(recipe, manifest)
    return worker.Job(
        recipe=recipe,
        plan=plan,
        label_sets=manifest.label_sets,
        dataset_version=manifest.version,
        run_uri="run",
        mailbox=Told(),
        threads=1,
        last_step=plan.steps,
    )


def test_bad_and_filling_clips_are_left_out_and_bad_ones_told(job: worker.Job) -> None:
    block = {
        rows.SAMPLE: np.array([5, 6, -1, 8]),
        rows.CLIP: np.arange(4, dtype=np.uint8)[:, None, None, None, None] * np.ones((1, 2, 4, 4, 3), np.uint8),
        rows.LABELS: np.array([[0], [1], [2], [3]]),
        rows.REASON: np.array(["", "empty", "", ""]),
        rows.MESSAGE: np.array(["", "no bytes", "", ""]),
    }
    batch = worker.usable(block, 1, "cpu", job, "train")
    assert batch.number == 1
    assert batch.labels.tolist() == [[0], [3]]
    assert batch.clips[:, 0, 0, 0, 0].tolist() == [0, 3]
    assert job.mailbox.events == [BadVideos(split="train", found=((6, "empty", "no bytes"),))]


def test_progress_is_the_mean_over_all_clips(job: worker.Job) -> None:
    training = Training(job.recipe.model, job.recipe.loss, job.recipe.optim, job.recipe.loop, "cpu")
    log = worker._Log(job, 0)
    for loss, hits in ((4.0, 8), (2.0, 24)):
        training.step += 1
        log.add(StepSums(torch.tensor(loss), torch.tensor(hits), 32), 0.0)
    log.flush(training, 0)
    (progress,) = job.mailbox.events
    assert isinstance(progress, Progress)
    # Two micro-batches in each of two steps: their losses sum to 6.
    assert (progress.step, progress.loss, progress.top1) == (2, 1.5, 0.5)
    (metrics,) = log.take_history()
    assert metrics.values["loss"] == 1.5
    assert log.take_history() == ()


def test_a_loss_that_is_no_number_stops_training(job: worker.Job) -> None:
    training = Training(job.recipe.model, job.recipe.loss, job.recipe.optim, job.recipe.loop, "cpu")
    log = worker._Log(job, 0)
    log.add(StepSums(torch.tensor(float("nan")), torch.tensor(0), 32), 0.0)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 0; the last checkpoint is kept.*--optim.lr"):
        log.flush(training, 0)


@pytest.mark.parametrize("trusted", [True, False])
def test_bf16_that_cannot_be_trusted_is_given_up_with_a_warning(
    job: worker.Job, trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = dataclasses.replace(job.recipe.loop, precision="bf16")
    training = Training(job.recipe.model, job.recipe.loss, job.recipe.optim, loop, "cpu")
    job = dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, loop=loop))
    if not trusted:  # no machine with the fault is at hand
        wrong = ConvolutionReport(False, "stem on (1, 3, 8, 8)", 0.5)
        monkeypatch.setattr(worker, "convolution_self_test", lambda *_: wrong)
    worker._distrust_bf16(training, job, 0)
    assert training.loop.precision == ("bf16" if trusted else "fp32")
    told = [event.text for event in job.mailbox.events if isinstance(event, Notice)]
    assert len(told) == (0 if trusted else 1)
    assert all("float32" in text and "stem" in text for text in told)
