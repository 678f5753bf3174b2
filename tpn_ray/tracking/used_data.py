"""The part of a dataset that a run used, as MLflow lists it beside the run. Runs on drivers and in Tune trials."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpn_ray.redaction import redacted

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

CONTEXT_TAG = "mlflow.data.context"


@dataclass(frozen=True, kw_only=True)
class UsedData:
    """A split of a dataset."""

    name: str
    digest: str
    """Version of the whole dataset; two datasets with the same one hold the same videos."""
    source: str
    """Its URI."""
    context: str
    """What it was used for: training, validation, or evaluation."""
    videos: int

    def as_input(self) -> DatasetInput:
        """Return it as MLflow's entity."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        uri = redacted(self.source)
        kind = "s3" if uri.startswith("s3://") else "local"
        source, profile = json.dumps({"uri": uri}), json.dumps({"videos": self.videos})
        dataset = Dataset(name=self.name, digest=self.digest, source_type=kind, source=source, profile=profile)
        return DatasetInput(dataset=dataset, tags=[InputTag(CONTEXT_TAG, self.context)])
