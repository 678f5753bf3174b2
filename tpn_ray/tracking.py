"""MLflow tracking, the only code that talks to an MLflow server. Runs on drivers and in Tune trials.

No tracked text holds a secret. MLflow is imported on first use, since importing it takes seconds that a job that is
refused or tracks nothing can save. A run is tracked by the process that drives it. What the server does not accept is
kept and sent again later, so that a server outage costs neither the training nor its curves.
"""

from __future__ import annotations

import getpass
import http.client
import json
import os
import re
import ssl
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpn_ray import storage
from tpn_ray.errors import TrackingError
from tpn_ray.output import program
from tpn_ray.redaction import redacted

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

# MLflow reads these on import. By default it retries an unreachable server for many minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")  # it reports every migration of a new database
# MLflow's usage reporting runs in a thread that sets environment variables of this process at any moment.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the URL may hold a password

PACKAGE = Path(__file__).parent
SERVED = PACKAGE / "predict" / "served.py"
"""Code that MLflow runs to load a model, from a copy of this package stored beside the checkpoint."""
MODEL_NEEDS = ("av", "boto3", "jaxtyping", "mlflow", "numpy", "pillow", "pyarrow", "pydantic", "scipy", "torch")
"""Third-party packages that this code imports. This package is not listed: whoever installs a model's requirements
would get whatever an index holds under its name, which may be somebody else's."""
MAX_MODEL_BYTES = 8 * 1024**3
SQLITE = "sqlite:///"
PARENT_TAG = "mlflow.parentRunId"
KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"
"""Makes MLflow open the experiment in its page for training, with curves, rather than the one for language models."""
METRICS_PER_CALL, PARAMS_PER_CALL = 1000, 100
VALUE_CHARACTERS = 6000
_NOT_IN_KEYS = re.compile(r"[^/\w.\- :]")
"""Characters that MLflow refuses in a metric's name: one such metric would keep all others from being sent."""
RETRY_SECONDS = 10.0
CLOSE_SECONDS = 60.0
KNOCK_SECONDS = 4.0
"""Longest wait for a connection when a job begins."""


def model_requirements() -> list[str]:
    """Return the installed versions, without build tags such as +cpu, which no public index has."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in MODEL_NEEDS]


def local_uri(folder: str) -> str:
    """Return the URI of a tracking store on local disk that needs no server."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    return f"{SQLITE}{folder}/mlflow.db"


def page_command(tracking_uri: str) -> str:
    """Return the command that shows the runs, without any password."""
    shown = redacted(tracking_uri)
    if tracking_uri.startswith("http"):
        return f"open {shown.replace('***@', '')}"
    return (
        f"{program('mlflow')} server --host 127.0.0.1 --backend-store-uri {shown} --port 5000"
        "   # then open http://127.0.0.1:5000"
    )


@dataclass
class TrackedRun:
    """One MLflow run. Only `begin` can raise; later failures are recorded and counted, never raised."""

    client: MlflowClient
    run_id: str
    tracking_uri: str
    """May hold a password; must not be printed or stored."""
    waiting: list[Metric] = field(default_factory=list)
    waiting_tags: dict[str, str] = field(default_factory=dict)
    waiting_texts: dict[str, str] = field(default_factory=dict)
    failures: int = 0
    last_failure: float = -RETRY_SECONDS
    last_reason: str = ""

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log the metrics of one step. Steps should not be repeated, since MLflow keeps both."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        keys = {key: _NOT_IN_KEYS.sub("_", key) for key in values}
        self.waiting += [Metric(keys[key], float(value), now, step) for key, value in values.items()]
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
        return not (self.waiting or self.waiting_tags or self.waiting_texts)

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

    def _attempt(self, act: Any) -> bool:
        try:
            act()
        except Exception as error:  # whatever the client raises, tracking must not stop training
            self.failures += 1
            self.last_reason = redacted(str(error))[:300] or type(error).__name__
            self.last_failure = time.monotonic()
            return False
        return True

    def register_model(self, name: str, checkpoint: str, tags: Mapping[str, str]) -> str:
        """Log a checkpoint in MLflow's model format (`tpn_ray.predict.served`) as an artifact of the run, and register
        it as the newest version of a model. Return the version, or "" if the server refuses."""
        made: list[str] = []

        def act() -> None:
            import mlflow.pyfunc

            with tempfile.TemporaryDirectory() as folder:
                files = Path(folder) / "checkpoint"
                files.mkdir()
                for stored in storage.list_files(checkpoint):
                    storage.download(stored.uri, files / storage.name(stored.uri), max_bytes=MAX_MODEL_BYTES)
                mlflow.pyfunc.save_model(
                    f"{folder}/model",
                    python_model=str(SERVED),
                    artifacts={"checkpoint": str(files)},
                    code_paths=[str(PACKAGE)],
                    pip_requirements=model_requirements(),
                )
                self.client.log_artifacts(self.run_id, f"{folder}/model", "model")
            if not any(model.name == name for model in self.client.search_registered_models(f"name = '{name}'")):
                self.client.create_registered_model(name)
            source = f"{self.client.get_run(self.run_id).info.artifact_uri}/model"
            about = {key: redacted(value) for key, value in {"checkpoint": checkpoint, **tags}.items()}
            made_version = self.client.create_model_version(name, source=source, run_id=self.run_id, tags=about)
            made.append(str(made_version.version))

        self._attempt(act)
        return made[0] if made else ""

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
        client = _client(tracking_uri)
        experiment_id = _experiment(client, experiment)
        run_id = _unfinished(client, experiment_id, name, parent)
        if run_id is None:
            all_tags = {"mlflow.user": _user(), **clean, **({PARENT_TAG: parent} if parent else {})}
            run_id = client.create_run(experiment_id, run_name=name, tags=all_tags).info.run_id
            _log_parameters(client, run_id, parameters)
        else:
            client.update_run(run_id, status="RUNNING")
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in clean.items()])
    except Exception as error:  # MlflowException, requests' and SQLAlchemy's errors
        raise _unusable(tracking_uri, error) from error
    return TrackedRun(client=client, run_id=run_id, tracking_uri=tracking_uri)


def check(tracking_uri: str) -> None:
    """Raise TrackingError within seconds, before anything is made, if a server cannot be used."""
    if not tracking_uri or tracking_uri.startswith(SQLITE):
        return
    try:
        if tracking_uri.startswith("http"):
            _knock(tracking_uri)
        _client(tracking_uri).search_experiments(max_results=1)
    except Exception as error:  # MlflowException, requests' and SQLAlchemy's errors
        raise _unusable(tracking_uri, error) from error


def _knock(url: str) -> None:
    """Raise OSError if nothing listens at a URL, where the client would keep trying. A server that is slow, or does not
    like the request, passes."""
    parts = urllib.parse.urlsplit(url)
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    try:
        urllib.request.urlopen(plain, timeout=KNOCK_SECONDS).close()
    except (urllib.error.HTTPError, http.client.HTTPException, TimeoutError):
        return
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):
            raise OSError(getattr(error.reason, "strerror", None) or str(error.reason)) from error


def _unusable(tracking_uri: str, error: Exception) -> TrackingError:
    # Redacted before it is cut, since a cut could hide the end of a URI with a password.
    lines = redacted(str(error)).strip().splitlines()
    reason = lines[0][:300] if lines else type(error).__name__
    return TrackingError(
        f"the MLflow store {redacted(tracking_uri)} cannot be used: {reason}\nCheck --tracking-uri and that the server "
        "is running; MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, hold its "
        "credentials"
    )


PROBE_EXPERIMENT = "tpn_ray_doctor"


def probe_version(tracking_uri: str) -> tuple[str, str]:
    """Return the MLflow version that answers at the URI and the local one; without a server, the local one twice."""
    import mlflow
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    if not tracking_uri.startswith("http"):
        _client(tracking_uri).search_experiments(max_results=1)
        return mlflow.__version__, mlflow.__version__
    answer = http_request(get_default_host_creds(tracking_uri), "/version", "GET", timeout=15, max_retries=1)
    if answer.status_code in (401, 403):
        raise TrackingError(f"the server refuses these credentials (HTTP {answer.status_code})")
    if answer.status_code != 200:
        raise TrackingError(f"the server there is not an MLflow server (HTTP {answer.status_code} at /version)")
    return answer.text.strip(), mlflow.__version__


def probe_run(tracking_uri: str) -> None:
    """Create a run, write what jobs write, read it back, and delete it. Raises whatever the client raises."""
    from mlflow.entities import Metric, Param

    client = _client(tracking_uri)
    experiment = _experiment(client, PROBE_EXPERIMENT)
    run_id = client.create_run(experiment, run_name="doctor").info.run_id
    try:
        client.log_batch(run_id, metrics=[Metric("x", 1.0, 0, 1)], params=[Param("p", "1")])
        client.log_text(run_id, "doctor", "doctor.txt")
        with tempfile.TemporaryDirectory() as folder:
            back = Path(client.download_artifacts(run_id, "doctor.txt", folder)).read_text()
        if back != "doctor" or client.get_run(run_id).data.metrics != {"x": 1.0}:
            raise TrackingError("what was written to the server does not come back")
    finally:
        client.delete_run(run_id)


def settle(tracking_uri: str, run_id: str, status: str, tags: Mapping[str, str]) -> None:
    """End a run whose own process is gone. What the server does not accept is dropped, since nothing depends on it."""
    run = TrackedRun(client=_client(tracking_uri), run_id=run_id, tracking_uri=tracking_uri)
    run.set_tags(tags)
    run.end(status)


def _client(tracking_uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri)


def _experiment(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    root = None
    if client.tracking_uri.startswith(SQLITE):  # beside the store, not in whatever folder this process runs in
        file = storage.absolute(client.tracking_uri.removeprefix(SQLITE))
        root = storage.join(storage.parent(file), "mlflow-artifacts")
    try:
        return str(client.create_experiment(name, artifact_location=root, tags={KIND_TAG: KIND}))
    except MlflowException:  # another process was faster
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def _unfinished(client: MlflowClient, experiment_id: str, name: str, parent: str | None) -> str | None:
    quoted = name.replace("'", "")
    runs = client.search_runs([experiment_id], f"attributes.run_name = '{quoted}'", max_results=10)
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
