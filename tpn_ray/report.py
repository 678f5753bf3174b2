"""What a training job reports at its start and its end, on the terminal and in MLflow. Runs on the driver."""

from __future__ import annotations

import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.table import Table

from tpn_ray import storage, tracking
from tpn_ray.clips.views import Views
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.meter import ProgressMeter, duration, print_table
from tpn_ray.predict import scoring as predict
from tpn_ray.progress import catch_up
from tpn_ray.recipe import Recipe, flat, to_plain
from tpn_ray.tracking import TrackedRun, UsedData
from tpn_ray.training import origin, run_folder
from tpn_ray.training.goodput import Goodput
from tpn_ray.training.machines import Machines
from tpn_ray.training.run import RunResult


def begin(
    tracking_uri: str,
    experiment: str,
    name: str,
    folder: str,
    recipe: Recipe,
    manifest: Manifest,
    machines: Machines,
    data: str,
) -> TrackedRun:
    """Start the MLflow run, with the dataset, every field of the recipe and of the machines as a parameter, and the
    recipe itself as an artifact."""
    uri = tracking_uri or tracking.local_uri(_local(folder))
    tags = {
        "dataset_version": manifest.version,
        "storage": storage.join(folder, name),
        "mlflow.source.name": Path(sys.argv[0]).name,
        "code_sha256": origin.code_sha256(),
        **({"mlflow.source.git.commit": commit} if (commit := origin.commit()) else {}),
        "mlflow.note.content": _note(recipe, manifest),
    }
    parameters = {**flat(recipe), **machines.as_parameters}
    tracked = tracking.begin(uri, experiment, name, parameters=parameters, tags=tags)
    tracked.keeps_models = True
    for split, context in (("train", "training"), ("val", "validation")):
        tracked.use(used_data(data, manifest, split, context))
    tracked.log_json(to_plain(recipe), "recipe.json")
    tracked.log_json({name: list(classes) for name, classes in manifest.label_sets.items()}, "classes.json")
    tracked.log_json(_environment(), "environment.json")
    # Track what an earlier driver was killed before it could send.
    catch_up(tracked, run_folder.read_records(storage.join(folder, name)), storage.join(folder, name))
    return tracked


def used_data(data: str, manifest: Manifest, split: str, context: str) -> UsedData:
    """Describe a split of the dataset at `data` for MLflow."""
    source = storage.absolute(data)
    return UsedData(
        name=f"{storage.name(source)}/{split}",
        digest=manifest.version,
        source=source,
        context=context,
        videos=sum(one == split for one in manifest.splits),
    )


def _environment() -> dict[str, Any]:
    """Describe the driver's environment. Jobs refuse nodes with a different Ray or Python version on their own."""
    packages = {package.name: package.version for package in metadata.distributions()}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": dict(sorted(packages.items())),
    }


def _note(recipe: Recipe, manifest: Manifest) -> str:
    """Return the description for the run's page (Markdown)."""
    model, clip, loop = recipe.model, recipe.clip, recipe.loop
    sets = ", ".join(f"{len(classes)} classes ({name})" for name, classes in manifest.label_sets.items())
    pyramid = (
        f"TPN over res{model.levels}, flow {model.flow}, alpha {model.alpha}" if model.neck == "tpn" else "no pyramid"
    )
    return (
        f"**{model.backbone}**, {pyramid}, lambda {recipe.loss.lambdas}; clips of {clip.frames} frames x "
        f"{clip.stride_frames} ({clip.sampling}), {loop.epochs} epochs of {loop.batch_clips} clips a step.\n\n"
        f"{len(manifest.select('train'))} training and {len(manifest.select('val'))} validation videos, {sets}."
    )


def _local(folder: str) -> str:
    return storage.absolute("runs") if storage.is_s3(folder) else folder


def finish(
    tracked: TrackedRun, result: RunResult, manifest: Manifest, views: Views, machines: Machines, run_uri: str
) -> None:
    """Score the best checkpoint on `manifest`, write the scores to the run's folder, and log and print the results."""
    if not result.trained:
        print(f"the run {run_uri} is complete; its best checkpoint is scored again", flush=True)
    begun = time.monotonic()
    table = predict.score_videos(result.best, manifest, views, machines.for_scoring, ProgressMeter("videos scored"))
    numbers = predict.summarise(table, manifest.label_sets)
    seconds = time.monotonic() - begun
    scores_uri = storage.join(run_uri, "scores.parquet")
    predict.write_scores(table, scores_uri)
    # `val/top1` is the curve over the epochs; this is the checkpoint that was best on the very same videos.
    best = {name: value for name, value in numbers.items() if name.endswith(("top1", "top5", "mean_class", "map"))}
    shown = {f"val/best_{name}": value for name, value in best.items()}
    tracked.log_metrics(shown, 0)
    if result.goodput.total:
        # MLflow's page sorts by name; this name puts the curves before these bars.
        booked = {f"worker_time/{name}_seconds": seconds for name, seconds in result.goodput.seconds.items()}
        tracked.log_metrics({**booked, "worker_time/goodput": result.goodput.share}, 0)
    tracked.log_json(numbers, "scores.json")
    tracked.set_tags({"best_checkpoint": result.best})
    kept = run_folder.committed_steps(run_uri)
    tracked.forget_checkpoints([run_folder.checkpoint_uri(run_uri, step) for step in kept])
    if result.bad:
        tracked.log_json([dict(zip(("uri", "reason", "message"), bad, strict=True)) for bad in result.bad], "bad.json")
    of_what = "GPU" if machines.per_worker.gpus else "process"
    lines = _lines(result, numbers, manifest, views, seconds, of_what)
    print_table(_table(lines))
    # Outside the table, because text to be copied must not be wrapped.
    print(f"best checkpoint  {result.best}")
    print(f"scores           {scores_uri}")
    print(f"MLflow           {tracking.page_command(tracked.tracking_uri)}", flush=True)


def register(tracked: TrackedRun, name: str, result: RunResult, manifest: Manifest) -> None:
    """Register the best checkpoint as the newest version of a model in MLflow, and print which version it is, and
    which is the champion."""
    tags = {key: f"{value:.4f}" for key, value in result.scores.items()} | {"dataset_version": manifest.version}
    version = tracked.register_model(name, result.best, tags, manifest.uris[0])
    if not version:
        said = f"{name} could NOT be registered: {tracked.last_reason}"
    elif tracked.champion == version:
        said = f"models:/{name}/{version}, the champion (models:/{name}@champion)"
    else:
        why = "its validation score is higher, or it was trained on another dataset"
        said = f"models:/{name}/{version}; version {tracked.champion} stays the champion: {why}"
    print(f"MLflow model     {said}", flush=True)


def _lines(
    result: RunResult,
    numbers: dict[str, float],
    manifest: Manifest,
    views: Views,
    seconds: float,
    of_what: str,
) -> list[tuple[str, str]]:
    lines = []
    if manifest.multi_label:
        low, high = numbers["map_low"], numbers["map_high"]
        told = f"{numbers['map']:.1%}  (95 %: {low:.1%} to {high:.1%}; chance {numbers['map_by_chance']:.1%})"
        lines.append(("mAP", told))
    for name, classes in () if manifest.multi_label else manifest.label_sets.items():
        prefix = f"{name}_" if len(manifest.label_sets) > 1 else ""
        low, high = numbers[f"{prefix}top1_low"], numbers[f"{prefix}top1_high"]
        lines += [
            (
                f"{prefix}top-1",
                f"{numbers[prefix + 'top1']:.1%}  (95 %: {low:.1%} to {high:.1%}; chance {1 / len(classes):.1%})",
            ),
            (f"{prefix}top-5", f"{numbers[prefix + 'top5']:.1%}"),
        ]
    scored = f"{int(numbers['videos'])} videos, {views.count} view(s) each, in {duration(seconds)}"
    if numbers["bad_videos"]:
        scored += f"; {int(numbers['bad_videos'])} bad, counting them as wrong "
        scored += f"{numbers['map_of_all' if manifest.multi_label else 'top1_of_all']:.1%}"
    lines.append(("scored on", scored))
    if result.clips_per_second:
        lines.append(("training speed", f"{result.clips_per_second:.0f} clips/s (median)"))
    if result.peak_megabytes:
        lines.append(("peak memory", f"{result.peak_megabytes / 1024:.1f} GiB, {of_what} of the worker with the most"))
    if result.ended:
        lines.append(("ended early", result.ended))
    if result.goodput.total:
        lines.append(("goodput", _goodput(result.goodput)))
    if result.bad:
        lines.append(("bad videos", f"{len(result.bad)}, listed above and in MLflow (bad.json)"))
    return lines


def _goodput(goodput: Goodput) -> str:
    """Describe where the workers' time went, largest parts first."""
    parts = sorted(goodput.seconds.items(), key=lambda part: -part[1])
    shown = ", ".join(f"{name} {seconds / goodput.total:.0%}" for name, seconds in parts if seconds)
    restarts = f"; {goodput.restarts} restart(s)" if goodput.restarts > 0 else ""
    return f"{goodput.share:.0%} of {duration(goodput.total)} of workers' time: {shown}{restarts}"


def _table(lines: list[tuple[str, str]]) -> Any:
    table = Table(show_header=False)
    for left, right in lines:
        table.add_row(left, right, style=None)
    return table
