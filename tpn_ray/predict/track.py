"""An evaluation as a run of MLflow. Runs on the driver."""

from __future__ import annotations

from tpn_ray import storage, tracking
from tpn_ray.predict.evaluate import Question, Result
from tpn_ray.predict.table import METRICS
from tpn_ray.tracking import TrackedRun

PICTURES = (".png", ".html")


def begin(question: Question, folder: str, tracking_uri: str, experiment: str) -> TrackedRun | None:
    """Begin a run, if there is a server or store to begin it on."""
    if not tracking_uri:
        return None
    about = {"checkpoint": question.checkpoint, "data": question.data, "split": question.split, "views": question.views}
    tags = {"dataset_version": question.matched.manifest.version, "results": folder}
    return tracking.begin(tracking_uri, experiment, f"evaluate {storage.name(folder)}", parameters=about, tags=tags)


def finish(run: TrackedRun | None, results: list[Result]) -> None:
    """Log every result: its numbers, metrics.json and its pictures, those of several alphas below their folders."""
    if run is None:
        return
    for result in results:
        below = f"{storage.name(result.folder)}/" if result.alpha else ""
        run.log_metrics({f"test/{below}{name}": value for name, value in result.numbers.items()}, 0)
        log_folder(run, result.folder, below)
    run.end("FINISHED")


def log_folder(run: TrackedRun, folder: str, below: str = "") -> None:
    """metrics.json and the pictures that lie in a folder."""
    for file in storage.list_files(folder, suffixes=(*PICTURES, METRICS)):
        path = file.uri[len(storage.absolute(folder)) :].lstrip("/")
        if "/" not in path:
            run.log_file(storage.read_bytes(file.uri), below + path)
