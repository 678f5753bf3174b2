"""Probes of a tracking server for jobs/doctor.py. Runs on the driver."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tpn_ray.errors import TrackingError
from tpn_ray.tracking.store import client_of, experiment_id

PROBE_EXPERIMENT = "tpn_ray_doctor"


def probe_version(tracking_uri: str) -> tuple[str, str]:
    """Return the MLflow version that answers at the URI and the local one; without a server, the local one twice."""
    import mlflow
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    if not tracking_uri.startswith("http"):
        client_of(tracking_uri).search_experiments(max_results=1)
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

    client = client_of(tracking_uri)
    run_id = client.create_run(experiment_id(client, PROBE_EXPERIMENT), run_name="doctor").info.run_id
    try:
        client.log_batch(run_id, metrics=[Metric("x", 1.0, 0, 1)], params=[Param("p", "1")])
        client.log_text(run_id, "doctor", "doctor.txt")
        with tempfile.TemporaryDirectory() as folder:
            back = Path(client.download_artifacts(run_id, "doctor.txt", folder)).read_text()
        if back != "doctor" or client.get_run(run_id).data.metrics != {"x": 1.0}:
            raise TrackingError("what was written to the server does not come back")
    finally:
        client.delete_run(run_id)
