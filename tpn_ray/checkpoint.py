"""Checkpoint folders: their contents, writing, and reading. Runs anywhere.

    weights.pt        state dict of the network that was scored: tensors only
    training.pt       the rest of the training state (optimizer, weights behind an average): tensors and numbers
    checkpoint.json   step, recipe, class names, dataset version, scores
    manifest.json     SHA-256 of the other three, written last: a folder without it, or that does not match it, is torn

Reading executes nothing (`weights_only`), so a checkpoint from an untrusted source is safe to open.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import tpn_ray
from tpn_ray import storage
from tpn_ray.errors import CheckpointError, NotFoundError, TornCheckpointError
from tpn_ray.lease import Token
from tpn_ray.names import label_sets_problem
from tpn_ray.score import score_of

FORMAT = 1
FILES = ("weights.pt", "training.pt", "checkpoint.json")
MANIFEST = "manifest.json"
RUN = "run.json"
"""File by which the folder of a run is known (`training.run_folder`); its checkpoints are the folders step-..."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a training run at one step."""

    step: int
    """Number of completed steps."""
    weights: dict[str, Any]
    training: dict[str, Any]
    recipe: dict[str, Any]
    label_sets: dict[str, list[str]]
    """Class names by label set, in the order of the network's outputs."""
    dataset_version: str
    scores: dict[str, float] = field(default_factory=dict)
    """Validation scores at this step, if it was evaluated."""


def save(uri: str | Path, checkpoint: Checkpoint, token: Token | None = None) -> None:
    """Write the four files to a folder on disk or in object storage, replacing existing ones.

    With a lease's token, files written by a later holder are never replaced; LeaseError is raised if there is a later
    holder.
    """
    folder = storage.absolute(uri)
    about = {
        "format": FORMAT,
        "tpn_ray": tpn_ray.__version__,
        "step": checkpoint.step,
        "recipe": checkpoint.recipe,
        "label_sets": checkpoint.label_sets,
        "dataset_version": checkpoint.dataset_version,
        "scores": checkpoint.scores,
    }
    contents = {
        "weights.pt": _packed(checkpoint.weights),
        "training.pt": _packed(checkpoint.training),
        "checkpoint.json": json.dumps(about, indent=1).encode(),
    }
    write = token.write if token else storage.write_bytes
    for name, data in contents.items():
        write(storage.join(folder, name), data)
    if token:
        token.check()
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    write(storage.join(folder, MANIFEST), json.dumps(hashes, indent=1).encode())


def load(uri: str, parts: tuple[str, ...] = ("weights", "training")) -> Checkpoint:
    """Read a checkpoint folder and check it against its manifest; of the tensors, read only `parts`."""
    described = json.loads(_checked(uri, "checkpoint.json"))
    if why := label_sets_problem(described["label_sets"]):
        raise CheckpointError(f"{uri}/checkpoint.json {why}; it was not written by this program")
    tensors = {part: unpacked(uri, _checked(uri, f"{part}.pt")) for part in parts}
    return Checkpoint(
        step=described["step"],
        weights=tensors.get("weights", {}),
        training=tensors.get("training", {}),
        recipe=described["recipe"],
        label_sets=described["label_sets"],
        dataset_version=described["dataset_version"],
        scores=described["scores"],
    )


def weights_sha256(uri: str) -> str:
    """Return a digest of the names, types, shapes, and bits of a checkpoint's weights, whatever wrote the file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load(uri, parts=("weights",)).weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def find(uri: str) -> str:
    """Return the checkpoint that a URI stands for: itself, or of a run's folder the one with the best validation score
    (the latest in a tie; of a run without scores, the last one). Raises CheckpointError for a run without any."""
    folder = storage.absolute(uri)
    if storage.exists(storage.join(folder, MANIFEST)) or not storage.exists(storage.join(folder, RUN)):
        return folder  # which is refused where it is read, if it is neither
    places = (file.uri.removeprefix(f"{folder}/") for file in storage.list_files(folder))
    found = [match[1] for place in places if (match := re.fullmatch(rf"(step-\d{{8,}})/{MANIFEST}", place))]
    if not found:
        raise CheckpointError(f"the run {folder} has no checkpoint yet")
    return max((storage.join(folder, name) for name in found), key=_rank)


def _rank(uri: str) -> tuple[float, int]:
    about = json.loads(_checked(uri, "checkpoint.json"))
    return score_of(about["scores"]), about["step"]


def copy_weights(uri: str, folder: str | Path) -> None:
    """Copy what prediction needs of a checkpoint, without the rest of the training state."""
    contents = {name: _checked(uri, name) for name in ("weights.pt", "checkpoint.json")}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    for name, data in {**contents, MANIFEST: json.dumps(hashes, indent=1).encode()}.items():
        storage.write_bytes(storage.join(storage.absolute(folder), name), data)


def verify(uri: str) -> int:
    """Return the step of a checkpoint. Raises TornCheckpointError if a file is missing or was changed."""
    about = [_checked(uri, name) for name in FILES][-1]
    step: int = json.loads(about)["step"]
    return step


def _checked(uri: str, name: str) -> bytes:
    try:
        listed = storage.read_bytes(storage.join(uri, MANIFEST))
        data = storage.read_bytes(storage.join(uri, name))
    except NotFoundError as error:
        raise TornCheckpointError(
            f"{uri} is not a complete checkpoint ({error}); a checkpoint is a folder with {', '.join(FILES)} "
            f"and {MANIFEST}"
        ) from error
    try:
        hashes = json.loads(listed or "{}")
    except ValueError as error:
        raise TornCheckpointError(f"{uri}/{MANIFEST} is incomplete ({error}): it is torn or was changed") from error
    if not isinstance(hashes, dict):
        raise TornCheckpointError(f"{uri}/{MANIFEST} holds no hashes of files: it is torn or was changed")
    if hashes.get(name) != hashlib.sha256(data).hexdigest():
        raise TornCheckpointError(f"{uri}/{name} does not match the SHA-256 in its manifest: it is torn or was changed")
    if name == "checkpoint.json" and json.loads(data)["format"] != FORMAT:
        raise CheckpointError(f"{uri} has format {json.loads(data)['format']}, this version reads {FORMAT}")
    return data


def _packed(tensors: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def unpacked(uri: str, data: bytes) -> dict[str, Any]:
    """Load the tensors of one part of a checkpoint. Raises CheckpointError for anything that is not plain data."""
    try:
        tensors: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several types, none of its own
        raise CheckpointError(f"{uri} holds something other than tensors and plain values: {error}") from error
    return tensors
