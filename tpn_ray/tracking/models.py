"""Checkpoints as models of MLflow: one for each that is kept, and versions in the registry. Runs on the driver.

A logged model says which checkpoint it is, and carries the scores with the dataset that they were measured on. Its
files stay in the folder of the run, unless it is registered: then it holds the weights, and the code that serves them.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpn_ray import storage
from tpn_ray.redaction import redacted
from tpn_ray.score import score_of
from tpn_ray.tracking.used_data import UsedData

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Metric

PACKAGE = Path(__file__).parents[1]
SERVED = PACKAGE / "predict" / "served.py"
"""Code that MLflow runs to load a model, from a copy of this package stored beside the checkpoint."""
MODEL_NEEDS = ("av", "boto3", "jaxtyping", "mlflow", "numpy", "pillow", "pyarrow", "pydantic", "rich", "scipy", "torch")
"""Third-party packages that this code imports. This package is not listed: whoever installs a model's requirements
would get whatever an index holds under its name, which may be somebody else's."""
MODEL_TYPE = "tpn_ray"
EXAMPLE = "s3://bucket/video.mp4"
"""What a caller of a model sends, where no video of its own is at hand."""
CHECKPOINT_TAG, DATASET_TAG = "checkpoint", "dataset_version"
EXTERNAL_TAG = "mlflow.model.isExternal"
"""MLflow's mark of a model whose files are elsewhere."""
EXAMPLE_FILE, REQUEST_FILE = "input_example.json", "serving_input_example.json"
CHAMPION = "champion"
"""Alias of the version of a registered model to use. It moves by itself only to a version that can be compared."""


@dataclass(frozen=True, kw_only=True)
class KeptCheckpoint:
    """A checkpoint with its scores."""

    uri: str
    step: int
    scores: Mapping[str, float]
    at: int
    """When it was committed, in milliseconds since the epoch."""
    data: UsedData | None
    """What it was scored on."""


def log_checkpoint(client: MlflowClient, run_id: str, kept: KeptCheckpoint) -> None:
    """Make the logged model of a checkpoint, with its scores. Doing so again changes nothing."""
    from mlflow.entities import LoggedModelOutput

    run = client.get_run(run_id)
    model = _find(client, run.info.experiment_id, run_id, kept.uri) or _create(client, run, kept.uri)
    if model.model_id not in {output.model_id for output in (run.outputs.model_outputs if run.outputs else [])}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=kept.step)])
    client.log_batch(run_id, metrics=linked(kept.scores, kept.step, kept.at, model.model_id, kept.data))
    client.finalize_logged_model(model.model_id, "READY")


def linked(
    values: Mapping[str, float], step: int, at: int, model_id: str | None, data: UsedData | None
) -> list[Metric]:
    """Return metrics that belong to a model and a dataset, as well as to their run."""
    from mlflow.entities import Metric

    name, digest = (data.name, data.digest) if data else (None, None)
    return [
        Metric(key, float(value), at, step, model_id=model_id, dataset_name=name, dataset_digest=digest)
        for key, value in values.items()
    ]


def forget_checkpoints(client: MlflowClient, run_id: str, kept: set[str]) -> None:
    """Delete the logged models of a run whose checkpoints are not among those `kept`. Their scores stay in the run."""
    for model in _of_run(client, client.get_run(run_id).info.experiment_id, run_id):
        if model.tags.get(CHECKPOINT_TAG) not in kept:
            client.delete_logged_model(model.model_id)


def model_of(client: MlflowClient, experiment_id: str, run_id: str, checkpoint: str) -> str | None:
    """Return the id of the logged model of a checkpoint, or None."""
    found = _find(client, experiment_id, run_id, checkpoint)
    return str(found.model_id) if found else None


def _of_run(client: MlflowClient, experiment_id: str, run_id: str) -> list[LoggedModel]:
    found, token = list[Any](), None
    while True:
        page = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'", page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _find(client: MlflowClient, experiment_id: str, run_id: str, checkpoint: str) -> LoggedModel | None:
    uri = redacted(checkpoint)
    return next((one for one in _of_run(client, experiment_id, run_id) if one.tags.get(CHECKPOINT_TAG) == uri), None)


def _create(client: MlflowClient, run: Any, checkpoint: str) -> LoggedModel:
    tags = {CHECKPOINT_TAG: redacted(checkpoint), EXTERNAL_TAG: "true"}
    name = re.sub(r"[^\w=+, -]", "_", f"{run.info.run_name} {storage.name(checkpoint)}")
    return client.create_logged_model(
        run.info.experiment_id, name=name, source_run_id=run.info.run_id, tags=tags, model_type=MODEL_TYPE
    )


# --- the registry


def register(
    client: MlflowClient, run_id: str, name: str, checkpoint: str, tags: Mapping[str, str], example: str
) -> tuple[str, str]:
    """Give the logged model of a checkpoint its files, and make it the newest version of a registered model.

    `example` is the URI of a video that a caller may send. Returns the version, and the one that is the champion: the
    new version only if there was none, or one of the same dataset with no higher validation score.
    """
    run = client.get_run(run_id)
    model = _find(client, run.info.experiment_id, run_id, checkpoint) or _create(client, run, checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        write_served(f"{folder}/model", checkpoint, example, model, run_id)
        client.log_model_artifacts(model.model_id, f"{folder}/model")
    if EXTERNAL_TAG in model.tags:
        client.delete_logged_model_tag(model.model_id, EXTERNAL_TAG)
    client.finalize_logged_model(model.model_id, "READY")
    if not any(one.name == name for one in client.search_registered_models(f"name = '{name}'")):
        client.create_registered_model(name)
    about = {key: redacted(value) for key, value in {CHECKPOINT_TAG: checkpoint, **tags}.items()}
    made = client.create_model_version(
        name, source=model.artifact_location, run_id=run_id, tags=about, model_id=model.model_id
    )
    return str(made.version), _crown(client, name, str(made.version), about)


def _crown(client: MlflowClient, name: str, newest: str, about: Mapping[str, str]) -> str:
    present = client.get_registered_model(name).aliases.get(CHAMPION)
    if present is not None:
        champion = client.get_model_version(name, present).tags
        if champion.get(DATASET_TAG) != about.get(DATASET_TAG) or score_of(champion) > score_of(about):
            return str(present)
    client.set_registered_model_alias(name, CHAMPION, newest)
    return newest


def write_served(folder: str, checkpoint: str, example: str, model: LoggedModel, run_id: str) -> None:
    """Write a checkpoint in MLflow's model format (`tpn_ray.predict.served`): the weights without the rest of the
    training state, this package, the signature that its type hints give, and an example of a request."""
    import mlflow.pyfunc
    from mlflow.models import Model

    from tpn_ray import checkpoint as checkpoints  # imports torch, which takes seconds

    about = Model(model_uuid=model.model_id, run_id=run_id, model_id=model.model_id)
    with tempfile.TemporaryDirectory() as place:
        checkpoints.copy_weights(checkpoint, f"{place}/checkpoint")
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(SERVED),
            artifacts={"checkpoint": f"{place}/checkpoint"},
            code_paths=[str(PACKAGE)],
            pip_requirements=model_requirements(),
            mlflow_model=about,
        )
    # Given to `save_model`, the example would be predicted on the spot, and it need not exist.
    Path(folder, EXAMPLE_FILE).write_text(json.dumps([example]))
    Path(folder, REQUEST_FILE).write_text(json.dumps({"inputs": [example]}))
    about.saved_input_example_info = {
        "artifact_path": EXAMPLE_FILE,
        "type": "json_object",
        "serving_input_path": REQUEST_FILE,
    }
    about.save(f"{folder}/MLmodel")


def model_requirements() -> list[str]:
    """Return the installed versions, without build tags such as +cpu, which no public index has."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in MODEL_NEEDS]
