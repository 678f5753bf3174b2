"""The folder of a run: what was settled at its start, its checkpoints, and the record of everything measured.

    run.json                       recipe, class names, dataset version: another run of this name must have the same
    step-00000040/                 a checkpoint (tpn_ray.checkpoint); committed once its manifest is there
    records/step-00000040.json     scores and metrics up to that checkpoint since the one before it; never pruned

A record is written just before its checkpoint is committed, and counts only when it is: what is on record is exactly
what a run that goes on has behind it. Runs anywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from tpn_ray import checkpoint as checkpoints
from tpn_ray import storage
from tpn_ray.errors import CheckpointError, NotFoundError, TornCheckpointError, difference
from tpn_ray.train.record import Record, StepMetrics

FORMAT = 1
ABOUT = "run.json"
RECORDS = "records"


def name_of(step: int) -> str:
    """Name of a checkpoint's folder."""
    return f"step-{step:08d}"


def checkpoint_uri(run_uri: str, step: int) -> str:
    """Where the checkpoint after `step` steps is."""
    return storage.join(run_uri, name_of(step))


def committed_steps(run_uri: str) -> list[int]:
    """Steps of all checkpoints that are there, ascending; empty for a run that has none, or is none."""
    root = re.escape(storage.absolute(run_uri))
    pattern = re.compile(rf"{root}/step-(\d{{8,}})/{re.escape(checkpoints.MANIFEST)}")
    try:
        files = storage.list_files(run_uri, suffixes=(checkpoints.MANIFEST,))
    except NotFoundError:
        return []
    return sorted(int(found[1]) for file in files if (found := pattern.fullmatch(file.uri)))


def last_checkpoint(run_uri: str) -> str | None:
    """The newest checkpoint, or None."""
    steps = committed_steps(run_uri)
    return checkpoint_uri(run_uri, steps[-1]) if steps else None


def newest_whole(run_uri: str) -> tuple[int, list[str]]:
    """The step of the newest checkpoint that is whole (0: none is there); what is wrong with newer ones, which are
    deleted."""
    faults = []
    for step in reversed(committed_steps(run_uri)):
        uri = checkpoint_uri(run_uri, step)
        try:
            checkpoints.verify(uri)
        except TornCheckpointError as error:
            faults.append(str(error))
            delete_checkpoint(run_uri, step)
        else:
            return step, faults
    return 0, faults


def write_record(run_uri: str, record: Record) -> None:
    """Put a record down; it counts when the checkpoint of its step is committed."""
    plain = {
        "format": FORMAT,
        "step": record.step,
        "epoch": record.epoch,
        "scores": record.scores,
        "history": [{"step": metrics.step, **metrics.values} for metrics in record.history],
        "ended": record.ended,
    }
    storage.write_bytes(storage.join(run_uri, RECORDS, f"{name_of(record.step)}.json"), json.dumps(plain).encode())


def read_records(run_uri: str, after: int = 0) -> list[Record]:
    """The records of steps above `after` up to the newest checkpoint, in order."""
    steps = committed_steps(run_uri)
    if not steps:
        return []
    records = []
    for file in storage.list_files(storage.join(run_uri, RECORDS)):
        found = re.search(r"/step-(\d{8,})\.json$", file.uri)
        if found and after < int(found[1]) <= steps[-1]:
            records.append(_record(file.uri))
    return sorted(records, key=lambda record: record.step)


def _record(uri: str) -> Record:
    plain = json.loads(storage.read_bytes(uri))
    history = [StepMetrics(step=metrics.pop("step"), values=metrics) for metrics in plain["history"]]
    return Record(
        step=plain["step"],
        epoch=plain["epoch"],
        scores=plain["scores"],
        history=tuple(history),
        ended=plain["ended"],
    )


def best(records: Sequence[Record]) -> Record | None:
    """The one with the highest validation top-1, the later one of equals; None where none was scored."""
    scored = [record for record in records if record.scores]
    return max(scored, key=lambda record: (record.scores["val_top1"], record.step)) if scored else None


def delete_checkpoint(run_uri: str, step: int) -> None:
    """Its manifest goes first, so that half of it never counts as a checkpoint."""
    uri = checkpoint_uri(run_uri, step)
    storage.delete_file(storage.join(uri, checkpoints.MANIFEST))
    storage.delete_folder(uri)


def settle(run_uri: str, about: dict[str, Any]) -> int:
    """Put down what the run is, and return the step that it goes on from (0: none was committed yet).

    Raises CheckpointError, with what differs, if steps of another run are there.
    """
    uri, steps = storage.join(run_uri, ABOUT), committed_steps(run_uri)
    if not steps:
        storage.write_bytes(uri, json.dumps({"format": FORMAT, **about}, indent=1).encode())
        return 0
    before = json.loads(storage.read_bytes(uri))
    changed = difference(before, {"format": FORMAT, **json.loads(json.dumps(about))})
    if changed:
        raise CheckpointError(
            f"{run_uri} is a run with other settings, and would not be the same run if it went on:\n  "
            + "\n  ".join(line.removeprefix("recipe.") for line in changed)
            + "\nSet them back, or choose another --name"
        )
    return steps[-1]
