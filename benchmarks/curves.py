"""Trains whole grids of settings in plain processes, without a cluster, and keeps every epoch's weights and score.

A trial is an exact function of its setting, pauses included, so a grid that was trained to the end and scored after
every epoch holds what any policy of a campaign would have measured. The clips of a seed are the same for all settings:
they are decoded once.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution
from torch import Tensor

from tpn_ray.clips import rows
from tpn_ray.clips.rows import Rows
from tpn_ray.data.tasks import ClipSource, evaluation_rows, training_rows
from tpn_ray.datasets.manifest import Manifest, load_manifest
from tpn_ray.errors import ConfigError
from tpn_ray.recipe import Recipe, replace_fields, to_plain
from tpn_ray.training.evaluation import evaluate
from tpn_ray.training.run_plan import make_plan, recipe_for
from tpn_ray.training.step import MicroBatch, Training
from tpn_ray.tuning import space as spaces
from tpn_ray.tuning.space import Sample, Space

SCORED_TOGETHER = 32
OF_CLIPS = ("clip.", "augment.", "loop.")
"""Beginnings of the fields that may change which clips are trained on."""
Split = Literal["train", "val"]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All curves of a grid."""

    name: str
    space: Space
    samples: list[Sample]
    tops: NDArray[np.float64]
    """(n settings, epochs): validation top-1 after each epoch."""
    fresh: Callable[[Sequence[tuple[int, int]]], list[float]]
    """From pairs of a setting and an epoch (from 1) to their top-1 on videos that no trial has seen."""

    @property
    def epochs(self) -> int:
        return int(self.tops.shape[1])


def settings(fields: Space) -> list[Sample]:
    """Return all settings of a grid. Raises ConfigError for a field that is no choice, or that changes the clips."""
    for name, one in fields.items():
        if not isinstance(one, CategoricalDistribution):
            raise ConfigError(f"{name} is no choice(...): a grid needs one for each field")
        if name.startswith(OF_CLIPS):
            raise ConfigError(f"{name} may change the clips, which all settings of a grid share here")
    choices = [one.choices for one in fields.values() if isinstance(one, CategoricalDistribution)]
    return [dict(zip(fields, values, strict=True)) for values in itertools.product(*choices)]


def train_grid(
    recipe: Recipe, data: str, fresh: str, vary: Sequence[str], folder: Path, *, say: Callable[[str], None]
) -> Grid:
    """Train what the folder does not hold yet, as many settings at a time as there are cores."""
    manifest, seed = load_manifest(data), recipe.loop.seed
    recipe = replace_fields(recipe_for(recipe, manifest), {"loop.evaluate_every_epochs": 1})
    fields = spaces.space("none", recipe, vary)
    samples = settings(fields)
    about = json.dumps({"recipe": to_plain(recipe), "data": manifest.version, "vary": list(vary)}, indent=1)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "grid.json").exists() and (folder / "grid.json").read_text() != about:
        raise ConfigError(f"{folder} holds another grid; choose another --folder")
    (folder / "grid.json").write_text(about)
    todo = [number for number in range(len(samples)) if not _curve_file(folder, number).exists()]
    if todo:
        plan = make_plan(recipe, manifest)
        blocks = [list(range(step, min(step + 64, plan.steps))) for step in range(0, plan.steps, 64)]
        clips = folder / "clips"
        list(_in_processes(_decode_training, [(recipe, manifest, steps, clips) for steps in blocks]))
        _decode_all(recipe, manifest, folder / "val")
        trained = [(spaces.apply(recipe, samples[number]), manifest, number, folder) for number in todo]
        for done in _in_processes(_train, trained):
            say(f"seed {seed}: setting {done} of {len(samples)} is trained")
        for file in [*clips.iterdir(), *(folder / "val").iterdir()]:
            file.unlink()
    curves = [json.loads(_curve_file(folder, number).read_text()) for number in range(len(samples))]
    others = load_manifest(fresh)
    return Grid(
        name=folder.name,
        space=fields,
        samples=samples,
        tops=np.array(curves),
        fresh=lambda places: _fresh(recipe, samples, others, folder, places),
    )


def _in_processes(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Call a function in processes of one thread each, and yield the results in the order in which they are ready."""
    workers = max(1, min(os.cpu_count() or 1, len(calls)))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for one in as_completed([pool.submit(function, *call) for call in calls]):
            yield one.result()


def _curve_file(folder: Path, number: int) -> Path:
    return folder / f"{number:03}.json"


def _save(file: Path, made: Rows) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if any(made[rows.REASON]):
        raise ConfigError(f"a video cannot be used: {next(filter(None, made[rows.MESSAGE]))}")
    part = file.with_suffix(".part")
    with part.open("wb") as written:
        np.savez(written, clips=made[rows.CLIP], labels=made[rows.LABELS])
    part.replace(file)


def _source(recipe: Recipe, manifest: Manifest, split: Split) -> ClipSource:
    seed = recipe.loop.seed
    return ClipSource(manifest=manifest.select(split), clip=recipe.clip, augment=recipe.augment, seed=seed)


def _decode_training(recipe: Recipe, manifest: Manifest, steps: Sequence[int], folder: Path) -> None:
    plan, source = make_plan(recipe, manifest), _source(recipe, manifest, "train")
    for step in steps:
        if not (folder / f"{step}.npz").exists():
            slots = [plan.slot(number, 1, step) for number in range(plan.micro_batches(step))]
            _save(folder / f"{step}.npz", training_rows(source, slots))


def _decode_all(recipe: Recipe, manifest: Manifest, folder: Path) -> None:
    videos = np.arange(len(manifest.select("val")))
    groups = np.array_split(videos, np.arange(SCORED_TOGETHER, len(videos), SCORED_TOGETHER))
    calls = [(recipe, manifest, group, folder / f"{number:05}.npz") for number, group in enumerate(groups)]
    list(_in_processes(_decode_group, calls))


def _decode_group(recipe: Recipe, manifest: Manifest, group: NDArray[np.int64], file: Path) -> None:
    _save(file, evaluation_rows(_source(recipe, manifest, "val"), group))


def _batches(folder: Path) -> Iterator[MicroBatch]:
    for number, file in enumerate(sorted(folder.glob("*.npz"))):
        yield MicroBatch(number, *_load(file))


def _load(file: Path) -> tuple[Tensor, Tensor]:
    with np.load(file) as made:
        return torch.from_numpy(made["clips"]), torch.from_numpy(made["labels"])


def _training(recipe: Recipe) -> Training:
    return Training(recipe.model, recipe.loss, recipe.optim, recipe.loop, "cpu")


def _train(recipe: Recipe, manifest: Manifest, number: int, folder: Path) -> int:
    """Train one setting and keep its curve, and its weights after each epoch."""
    training, plan, tops = _training(recipe), make_plan(recipe, manifest), list[float]()
    size = recipe.loop.micro_batch_clips
    for step in range(plan.steps):
        clips, labels = _load(folder / "clips" / f"{step}.npz")
        parts = zip(torch.split(clips, size), torch.split(labels, size), strict=True)
        batches = [MicroBatch(place, *part) for place, part in enumerate(parts)]
        training.train_step(batches, plan.steps, plan.micro_batches(step))
        epoch = plan.place(step + 1)[0]
        if plan.first_step(epoch) == step + 1:
            tops.append(evaluate(training, _batches(folder / "val"))["val_top1"])
            torch.save(training.scored.state_dict(), folder / f"{number:03}-{epoch}.pt")
    _curve_file(folder, number).write_text(json.dumps(tops))
    return number


def _fresh(
    recipe: Recipe, samples: Sequence[Sample], manifest: Manifest, folder: Path, places: Iterable[tuple[int, int]]
) -> list[float]:
    """Score checkpoints on the validation videos of another dataset, each once."""
    file, places = folder / "fresh.json", list(places)
    known = json.loads(file.read_text()) if file.exists() else {"version": manifest.version}
    if known["version"] != manifest.version:
        raise ConfigError(f"{folder} was scored on other fresh videos; choose another --folder")
    missing = sorted({place for place in places if "{}-{}".format(*place) not in known})
    if missing:
        clips = folder.parent / f"fresh-{manifest.version[:12]}"
        if not clips.exists():  # whole, or not at all: fewer videos would be another score
            part = clips.with_suffix(".part")
            _decode_all(recipe, manifest, part)
            part.rename(clips)
        calls = [(spaces.apply(recipe, samples[one]), folder, clips, one, epoch) for one, epoch in missing]
        for one, epoch, top in _in_processes(_score, calls):
            known[f"{one}-{epoch}"] = top
        file.write_text(json.dumps(known))
    return [float(known[f"{one}-{epoch}"]) for one, epoch in places]


def _score(recipe: Recipe, folder: Path, clips: Path, one: int, epoch: int) -> tuple[int, int, float]:
    training = _training(recipe)
    training.scored.load_state_dict(torch.load(folder / f"{one:03}-{epoch}.pt", weights_only=True))
    return one, epoch, evaluate(training, _batches(clips))["val_top1"]
