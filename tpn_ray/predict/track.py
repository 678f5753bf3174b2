"""Results in a folder, logged as an MLflow run. Runs on the driver."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from tpn_ray import storage, tracking
from tpn_ray.predict.evaluate import EvaluationQuestion, Result
from tpn_ray.predict.table import METRICS
from tpn_ray.tracking import TrackedRun, UsedData

PICTURES = (".png", ".html")


def begin(
    tracking_uri: str, experiment: str, name: str, parameters: Mapping[str, Any], tags: Mapping[str, str]
) -> TrackedRun | None:
    """Start a run, if there is a server or store to start it on."""
    if not tracking_uri:
        return None
    return tracking.begin(tracking_uri, experiment, name, parameters=parameters, tags=tags)


def begin_evaluation(tracking_uri: str, experiment: str, name: str, question: EvaluationQuestion) -> TrackedRun | None:
    """Start a run below the one that trained the checkpoint, if the store knows it, with the data and the logged model
    that it evaluates."""
    if not tracking_uri:
        return None
    manifest = question.matched.manifest
    parameters = {key: getattr(question, key) for key in ("checkpoint", "data", "split", "views")}
    parameters |= {key: str(value) for key, value in dataclasses.asdict(question.arithmetic).items()}
    trained, model = tracking.find_run(tracking_uri, experiment, question.checkpoint)
    tags = {"dataset_version": manifest.version, **({"training_run": trained} if trained else {})}
    run = tracking.begin(tracking_uri, experiment, name, parameters=parameters, tags=tags, parent=trained)
    run.use(
        UsedData(
            name=f"{storage.name(question.data)}/{question.split}",
            digest=manifest.version,
            source=question.data,
            context="evaluation",
            videos=len(manifest),
        )
    )
    if model:
        run.evaluates(model)
    return run


@contextlib.contextmanager
def ended_by_errors(run: TrackedRun | None) -> Iterator[None]:
    """End the run as KILLED if the job is stopped in this block, and as FAILED if it fails."""
    try:
        yield
    except BaseException as error:
        if run is not None:
            run.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise


def finish(run: TrackedRun | None, results: list[Result], split: str) -> None:
    """Log each result's numbers, named after the split, metrics.json, and pictures; with several alphas, below their
    folders."""
    if run is None:
        return
    for result in results:
        below = f"{storage.name(result.folder)}/" if result.alpha else ""
        run.log_metrics({f"{split}/{below}{name}": value for name, value in result.numbers.items()}, 0)
        log_folder(run, result.folder, below)
    run.end("FINISHED")


def log_folder(run: TrackedRun, folder: str, below: str = "") -> None:
    """Log metrics.json and the pictures in a folder."""
    for file in storage.list_files(folder, suffixes=(*PICTURES, METRICS)):
        path = file.uri[len(storage.absolute(folder)) :].lstrip("/")
        if "/" in path:
            continue
        if not run.log_file(storage.read_bytes(file.uri), below + path):  # the file is in its folder in any case
            print(f"warning: MLflow did not take {below}{path}: {run.last_reason}", file=sys.stderr)
