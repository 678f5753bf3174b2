"""MLflow tracking, the only package that talks to an MLflow server. Runs on drivers and in Tune trials.

No tracked text holds a secret. MLflow is imported on first use, since importing it takes seconds that a job that is
refused or tracks nothing can save. A run is tracked by the process that drives it. What the server does not accept is
kept and sent again later, so that a server outage costs neither the training nor its curves.
"""

from __future__ import annotations

from tpn_ray.tracking.models import MODEL_NEEDS
from tpn_ray.tracking.probe import PROBE_EXPERIMENT, probe_run, probe_version
from tpn_ray.tracking.store import KIND, KIND_TAG, SQLITE, check, local_uri, page_command
from tpn_ray.tracking.tracked_run import PARENT_TAG, TrackedRun, begin, find_run, settle, storage_of
from tpn_ray.tracking.used_data import UsedData

__all__ = [
    "KIND", "KIND_TAG", "MODEL_NEEDS", "PARENT_TAG", "PROBE_EXPERIMENT", "SQLITE", "TrackedRun", "UsedData", "begin",
    "check", "find_run", "local_uri", "page_command", "probe_run", "probe_version", "settle", "storage_of",
]  # fmt: skip
