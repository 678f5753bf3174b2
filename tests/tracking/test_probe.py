"""What jobs/doctor.py asks of a tracking server."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from tpn_ray import tracking


def test_a_store_is_probed_and_left_as_it_was(tmp_path: Path) -> None:
    store = tracking.local_uri(str(tmp_path))
    there, here = tracking.probe_version(store)
    assert there == here
    tracking.probe_run(store)
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name(tracking.PROBE_EXPERIMENT)
    assert client.search_runs([experiment.experiment_id]) == []


@pytest.mark.cluster
def test_a_server_is_probed(mlflow_url: str) -> None:
    there, here = tracking.probe_version(mlflow_url)
    assert there == here
    tracking.probe_run(mlflow_url)
    with pytest.raises(Exception, match="127.0.0.1"):
        tracking.probe_version("http://127.0.0.1:9")
