"""Where runs are tracked: the MLflow server or database, whether it can be used, and its experiments. Runs anywhere."""

from __future__ import annotations

import http.client
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from tpn_ray import storage
from tpn_ray.errors import TrackingError
from tpn_ray.output import program
from tpn_ray.redaction import redacted

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow reads these on import. By default it retries an unreachable server for many minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")  # it reports every migration of a new database
# MLflow's usage reporting runs in a thread that sets environment variables of this process at any moment.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the URL may hold a password

SQLITE = "sqlite:///"
KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"
"""Makes MLflow open the experiment in its page for training, with curves, rather than the one for language models."""
KNOCK_SECONDS = 4.0
"""Longest wait for a connection when a job begins."""


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


def check(tracking_uri: str) -> None:
    """Raise TrackingError within seconds, before anything is made, if a server cannot be used."""
    if not tracking_uri or tracking_uri.startswith(SQLITE):
        return
    try:
        if tracking_uri.startswith("http"):
            _knock(tracking_uri)
        client_of(tracking_uri).search_experiments(max_results=1)
    except Exception as error:  # MlflowException, requests' and SQLAlchemy's errors
        raise unusable(tracking_uri, error) from error


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


def unusable(tracking_uri: str, error: Exception) -> TrackingError:
    """Return the error that tells a user what a client raised."""
    # Redacted before it is cut, since a cut could hide the end of a URI with a password.
    lines = redacted(str(error)).strip().splitlines()
    reason = lines[0][:300] if lines else type(error).__name__
    return TrackingError(
        f"the MLflow store {redacted(tracking_uri)} cannot be used: {reason}\nCheck --tracking-uri and that the server "
        "is running; MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, hold its "
        "credentials"
    )


def client_of(tracking_uri: str) -> MlflowClient:
    """Return a client of a server or a database."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri)


def experiment_id(client: MlflowClient, name: str) -> str:
    """Return the id of an experiment, which is made if there is none of this name."""
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
