"""One MLflow run, and what is still to be sent to its server. Runs on drivers and in Tune trials."""

from __future__ import annotations

import getpass
import json
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpn_ray import storage
from tpn_ray.errors import TrackingError
from tpn_ray.redaction import redacted
from tpn_ray.tracking import models
from tpn_ray.tracking.models import KeptCheckpoint
from tpn_ray.tracking.store import client_of, experiment_id, unusable
from tpn_ray.tracking.used_data import UsedData

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

PARENT_TAG = "mlflow.parentRunId"
STORAGE_TAG = "storage"
"""Tag with the folder of a run, by which the run of a checkpoint is found."""
METRICS_PER_CALL, PARAMS_PER_CALL = 1000, 100
VALUE_CHARACTERS = 6000
_NOT_IN_KEYS = re.compile(r"[^/\w.\- :]")
"""Characters that MLflow refuses in a metric's name: one such metric would keep all others from being sent."""
RETRY_SECONDS = 10.0
CLOSE_SECONDS = 60.0


@dataclass
class TrackedRun:
    """One MLflow run. Only `begin` can raise; later failures are recorded and counted, never raised."""

    client: MlflowClient
    run_id: str
    tracking_uri: str
    """May hold a password; must not be printed or stored."""
    keeps_models: bool = False
    """Whether each scored checkpoint becomes a logged model, with its scores."""
    used: dict[str, UsedData] = field(default_factory=dict)
    """Data that the run uses, by context."""
    waiting: list[Metric] = field(default_factory=list)
    waiting_tags: dict[str, str] = field(default_factory=dict)
    waiting_texts: dict[str, str] = field(default_factory=dict)
    waiting_data: list[UsedData] = field(default_factory=list)
    waiting_checkpoints: list[KeptCheckpoint] = field(default_factory=list)
    model_id: str | None = None
    """Logged model that the run evaluates."""
    champion: str = ""
    """Version of the last registered model that is its champion."""
    failures: int = 0
    last_failure: float = -RETRY_SECONDS
    last_reason: str = ""

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log the metrics of one step. Steps should not be repeated, since MLflow keeps both.

        In a run that evaluates a logged model, they also belong to that model, measured on the evaluated data.
        """
        keys = {_key(key): value for key, value in values.items()}
        self.waiting += models.linked(keys, step, _now(), self.model_id, self.used.get("evaluation"))
        self.send()

    def evaluates(self, model_id: str) -> None:
        """Say which logged model the run evaluates."""
        from mlflow.entities import LoggedModelInput

        self.model_id = model_id
        self._attempt(lambda: self.client.log_inputs(self.run_id, models=[LoggedModelInput(model_id)]))

    def log_checkpoint(self, uri: str, step: int, scores: Mapping[str, float]) -> None:
        """Log the validation scores of a checkpoint, in the run and, if it keeps models, with the checkpoint."""
        at, data = _now(), self.used.get("validation")
        clean = {_key(key): value for key, value in scores.items()}
        self.waiting += models.linked(clean, step, at, None, None)
        if self.keeps_models and scores:
            self.waiting_checkpoints.append(KeptCheckpoint(uri=uri, step=step, scores=clean, at=at, data=data))
        self.send()

    def forget_checkpoints(self, kept: Sequence[str]) -> None:
        """Delete the logged models of checkpoints that are not among those `kept`, now or not at all."""
        self.waiting_checkpoints = [one for one in self.waiting_checkpoints if one.uri in kept]
        self._attempt(lambda: models.forget_checkpoints(self.client, self.run_id, set(map(redacted, kept))))

    def use(self, data: UsedData) -> None:
        """List a dataset among those that the run used."""
        self.used[data.context] = data
        self.waiting_data.append(data)
        self.send()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set short texts shown beside the run."""
        self.waiting_tags.update({key: redacted(value) for key, value in tags.items()})
        self.send()

    def log_text(self, text: str, path: str) -> None:
        """Log a small text file as an artifact of the run."""
        self.waiting_texts[path] = redacted(text)
        self.send()

    def log_json(self, content: Any, path: str) -> None:
        """Log plain data as a JSON artifact of the run."""
        self.log_text(json.dumps(content, indent=1), path)

    def last_step(self, metric: str) -> int:
        """Return the last step that the server has for a metric; 0 if it has none or does not answer."""
        steps: list[int] = []
        self._attempt(lambda: steps.extend(m.step for m in self.client.get_metric_history(self.run_id, metric)))
        return max(steps, default=0)

    @property
    def sent(self) -> bool:
        """Whether the server has everything."""
        return not (
            self.waiting or self.waiting_tags or self.waiting_texts or self.waiting_data or self.waiting_checkpoints
        )

    def send(self) -> bool:
        """Send what is pending; after a failure, wait some seconds before retrying. Return whether nothing is left."""
        if not self.sent and time.monotonic() - self.last_failure >= RETRY_SECONDS:
            self._attempt(self._send_waiting)
        return self.sent

    def _send_waiting(self) -> None:
        while self.waiting:
            self.client.log_batch(self.run_id, metrics=self.waiting[:METRICS_PER_CALL])
            del self.waiting[:METRICS_PER_CALL]
        for key in list(self.waiting_tags):
            self.client.set_tag(self.run_id, key, self.waiting_tags[key][:VALUE_CHARACTERS])
            del self.waiting_tags[key]
        for path in list(self.waiting_texts):
            self.client.log_text(self.run_id, self.waiting_texts[path], path)
            del self.waiting_texts[path]
        if self.waiting_data:
            self.client.log_inputs(self.run_id, [data.as_input() for data in self.waiting_data])
            self.waiting_data.clear()
        while self.waiting_checkpoints:
            models.log_checkpoint(self.client, self.run_id, self.waiting_checkpoints[0])
            del self.waiting_checkpoints[0]

    def log_file(self, data: bytes, path: str) -> bool:
        """Log a file as an artifact of the run, now or not at all; if not, return False, with the reason in
        `last_reason`."""
        folder, _, name = path.rpartition("/")

        def act() -> None:
            with tempfile.TemporaryDirectory() as place:
                file = Path(place) / name
                file.write_bytes(data)
                self.client.log_artifact(self.run_id, str(file), folder or None)

        return self._attempt(act)

    def _attempt(self, act: Callable[[], Any]) -> bool:
        try:
            act()
        except Exception as error:  # whatever the client raises, tracking must not stop training
            self.failures += 1
            self.last_reason = redacted(str(error))[:300] or type(error).__name__
            self.last_failure = time.monotonic()
            return False
        return True

    def register_model(self, name: str, checkpoint: str, tags: Mapping[str, str], example: str = models.EXAMPLE) -> str:
        """Make a checkpoint the newest version of a registered model (`models.register`), and note the `champion`.
        Return the version, or "" if the server refuses."""
        made: list[tuple[str, str]] = []
        self._attempt(lambda: made.append(models.register(self.client, self.run_id, name, checkpoint, tags, example)))
        version, self.champion = made[0] if made else ("", "")
        return version

    def end(self, status: str) -> bool:
        """End the run as FINISHED, FAILED, or KILLED, and return whether everything was sent.

        What is left is retried for a minute, or sent once for a job that is being killed, which has no such time.
        """
        deadline = time.monotonic() + (0.0 if status == "KILLED" else CLOSE_SECONDS)
        while not self.send() and time.monotonic() < deadline:
            time.sleep(1.0)
        return self._attempt(lambda: self.client.set_terminated(self.run_id, status)) and self.sent


def begin(
    tracking_uri: str,
    experiment: str,
    name: str,
    *,
    parameters: Mapping[str, Any],
    tags: Mapping[str, str],
    parent: str | None = None,
) -> TrackedRun:
    """Start a run, or resume the unfinished one of this name. Raises TrackingError if the store cannot be used: better
    now than after a night of training."""
    from mlflow.entities import RunTag

    clean = {key: redacted(value) for key, value in tags.items()}
    try:
        client = client_of(tracking_uri)
        experiment_number = experiment_id(client, experiment)
        run_id = _unfinished(client, experiment_number, name, parent)
        if run_id is None:
            all_tags = {"mlflow.user": _user(), **clean, **({PARENT_TAG: parent} if parent else {})}
            run_id = client.create_run(experiment_number, run_name=name, tags=all_tags).info.run_id
            _log_parameters(client, run_id, parameters)
        else:
            client.update_run(run_id, status="RUNNING")
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in clean.items()])
    except Exception as error:  # MlflowException, requests' and SQLAlchemy's errors
        raise unusable(tracking_uri, error) from error
    return TrackedRun(client=client, run_id=run_id, tracking_uri=tracking_uri)


def find_run(tracking_uri: str, experiment: str, checkpoint: str) -> tuple[str | None, str | None]:
    """Return the id of the newest run that trained a checkpoint, and of the logged model of that checkpoint; None for
    what the store does not know. Raises TrackingError if the store cannot be used."""
    folder = redacted(storage.parent(checkpoint)).replace("'", "")
    try:
        client = client_of(tracking_uri)
        number = experiment_id(client, experiment)
        found = client.search_runs([number], f"tags.{STORAGE_TAG} = '{folder}'", max_results=1)
        run_id = str(found[0].info.run_id) if found else None
        return run_id, models.model_of(client, number, run_id, checkpoint) if run_id else None
    except Exception as error:  # MlflowException, requests' and SQLAlchemy's errors
        raise unusable(tracking_uri, error) from error


def storage_of(tracking_uri: str, run_id: str) -> str:
    """Return the folder of a run with this id. Raises TrackingError if the store has no such run, or cannot be used."""
    try:
        run = client_of(tracking_uri).get_run(run_id)
    except Exception as error:  # MlflowException, requests' and SQLAlchemy's errors
        raise unusable(tracking_uri, error) from error
    folder: str = run.data.tags.get(STORAGE_TAG, "")
    if not folder:
        raise TrackingError(f"the MLflow run {run_id} has no tag {STORAGE_TAG!r} with a folder: it trained nothing")
    return folder


def settle(tracking_uri: str, run_id: str, status: str, tags: Mapping[str, str]) -> None:
    """End a run whose own process is gone. What the server does not accept is dropped, since nothing depends on it."""
    run = TrackedRun(client=client_of(tracking_uri), run_id=run_id, tracking_uri=tracking_uri)
    run.set_tags(tags)
    run.end(status)


def _now() -> int:
    return int(time.time() * 1000)


def _key(name: str) -> str:
    return _NOT_IN_KEYS.sub("_", name)


def _unfinished(client: MlflowClient, experiment: str, name: str, parent: str | None) -> str | None:
    quoted = name.replace("'", "")
    runs = client.search_runs([experiment], f"attributes.run_name = '{quoted}'", max_results=10)
    for run in runs:
        if run.data.tags.get(PARENT_TAG) == parent and run.info.status != "FINISHED":
            return str(run.info.run_id)
    return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without an entry for its user
        return "unknown"


def _log_parameters(client: MlflowClient, run_id: str, parameters: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    params = [Param(key, redacted(str(value))[:VALUE_CHARACTERS]) for key, value in parameters.items()]
    for start in range(0, len(params), PARAMS_PER_CALL):
        client.log_batch(run_id, params=params[start : start + PARAMS_PER_CALL])
