"""The folder of a run: the settings fixed at its start, its checkpoints, and the record of everything measured.

    run.json                       recipe, class names, dataset version: another run of this name must have the same
    step-00000040/                 a checkpoint (tpn_ray.checkpoint); committed once its manifest is there
    records/step-00000040.json     scores and metrics up to that checkpoint since the one before it; never pruned
    origins/                       code, packages, machines, and data that trained it (tpn_ray.training.origin)
    lease/                         which job works on the run (tpn_ray.lease)

A record is written just before its checkpoint is committed, and counts only once it is: the records are exactly what a
resumed run has behind it. A checkpoint found damaged is set aside: its manifest gets another name, so that it never
counts again, and its files stay until the run writes a checkpoint of the same step. Runs anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from tpn_ray import checkpoint as checkpoints
from tpn_ray import storage
from tpn_ray.errors import CheckpointError, DamagedError, NotFoundError, TornCheckpointError, difference
from tpn_ray.lease import Token
from tpn_ray.recipe import with_defaults
from tpn_ray.score import called, score_of
from tpn_ray.sealed import damaged, seal, unseal
from tpn_ray.training.record import Record, StepMetrics

FORMAT = 1
ABOUT = checkpoints.RUN
RECORDS = "records"
_ABOUT_REMEDY = (
    "Put it back from a copy, or delete it: the same command then takes what the run is from its checkpoints"
)
SET_ASIDE = "manifest.damaged.json"
"""Name of the manifest of a checkpoint that was found damaged."""


def name_of(step: int) -> str:
    """Return the name of a checkpoint's folder."""
    return f"step-{step:08d}"


def checkpoint_uri(run_uri: str, step: int) -> str:
    """Return the URI of the checkpoint after `step` steps."""
    return storage.join(run_uri, name_of(step))


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The contents of a run's folder."""

    folders: dict[int, frozenset[str]]
    """Names of the files in each checkpoint's folder, by step."""
    records: frozenset[int]
    """Steps that have a record."""

    @property
    def committed(self) -> list[int]:
        """Steps of all committed checkpoints, ascending."""
        return sorted(step for step, names in self.folders.items() if checkpoints.MANIFEST in names)

    @property
    def set_aside(self) -> list[int]:
        """Steps of checkpoints that were found damaged."""
        return sorted(step for step, names in self.folders.items() if SET_ASIDE in names)


def contents(run_uri: str) -> Contents:
    """List a run's folder; empty for a run that has nothing yet."""
    root = storage.absolute(run_uri) + "/"
    folders, records = dict[int, set[str]](), set[int]()
    try:
        files = storage.list_files(run_uri)
    except NotFoundError:
        files = []
    for file in files:
        place = file.uri.removeprefix(root)
        if found := re.fullmatch(r"step-(\d{8,})/([^/]+)", place):
            folders.setdefault(int(found[1]), set()).add(found[2])
        elif found := re.fullmatch(rf"{RECORDS}/step-(\d{{8,}})\.json", place):
            records.add(int(found[1]))
    return Contents(folders={step: frozenset(names) for step, names in folders.items()}, records=frozenset(records))


def committed_steps(run_uri: str) -> list[int]:
    """Return the steps of all committed checkpoints, ascending; empty if there is no run or no checkpoint."""
    return contents(run_uri).committed


def last_checkpoint(run_uri: str) -> str | None:
    """Return the URI of the newest checkpoint, or None."""
    steps = committed_steps(run_uri)
    return checkpoint_uri(run_uri, steps[-1]) if steps else None


def place_of(run_uri: str, step: int, committed: Collection[int]) -> str:
    """Return where the state of a run at `step` is kept: its checkpoint, or the next one that exists."""
    return checkpoint_uri(run_uri, min((one for one in committed if one >= step), default=step))


def newest_whole(run_uri: str) -> tuple[int, list[str]]:
    """Find the newest whole checkpoint, set newer damaged ones aside, and return its step and their faults.

    The step is 0 if none was ever committed. Raises DamagedError, and changes nothing, if there are checkpoints and
    none is whole.
    """
    found, faults = contents(run_uri), dict[int, str]()
    for step in reversed(found.committed):
        try:
            checkpoints.verify(checkpoint_uri(run_uri, step))
        except TornCheckpointError as error:
            faults[step] = str(error)
        else:
            for torn in faults:
                set_aside(run_uri, torn)
            return step, list(faults.values())
    if lost := sorted({*faults, *found.set_aside}):
        first = next(iter(faults.values()), "they had been set aside")
        raise DamagedError(
            f"every checkpoint of the run {run_uri} is damaged ({first}):\n  "
            + "\n  ".join(checkpoint_uri(run_uri, step) for step in lost)
            + "\nNothing was changed. Put one of these folders back from a copy, and the same command resumes from it; "
            "or delete them all to train again from the first step; or choose another --name"
        )
    return 0, []


def set_aside(run_uri: str, step: int) -> None:
    """Make a damaged checkpoint never count again. Its files stay as evidence."""
    uri = checkpoint_uri(run_uri, step)
    manifest = storage.join(uri, checkpoints.MANIFEST)
    storage.write_bytes(storage.join(uri, SET_ASIDE), storage.read_bytes(manifest))
    storage.delete_file(manifest)


def write_record(run_uri: str, record: Record, token: Token | None = None) -> None:
    """Write a record; it counts once the checkpoint of its step is committed."""
    plain = {
        "format": FORMAT,
        "step": record.step,
        "epoch": record.epoch,
        "scores": record.scores,
        "history": [{"step": metrics.step, **metrics.values} for metrics in record.history],
        "ended": record.ended,
    }
    (token.write if token else storage.write_bytes)(_record_uri(run_uri, record.step), seal(plain))


def delete_record(run_uri: str, step: int) -> None:
    """Delete the record of a step that the run did not reach."""
    storage.delete_file(_record_uri(run_uri, step))


def _record_uri(run_uri: str, step: int) -> str:
    return storage.join(run_uri, RECORDS, f"{name_of(step)}.json")


def read_records(run_uri: str, after: int = 0) -> list[Record]:
    """Return the records of steps above `after` up to the newest checkpoint, in order. Raises DamagedError."""
    found = contents(run_uri)
    newest = max(found.committed, default=0)
    return [_record(_record_uri(run_uri, step)) for step in sorted(found.records) if after < step <= newest]


def _record(uri: str) -> Record:
    remedy = (
        "Put it back from a copy, or delete it: the same command then resumes, and only the losses and scores that it "
        "held are missing"
    )
    plain = unseal(storage.read_bytes(uri), uri, remedy)
    try:
        history = [StepMetrics(step=metrics.pop("step"), values=metrics) for metrics in plain["history"]]
        return Record(
            step=plain["step"],
            epoch=plain["epoch"],
            scores=plain["scores"],
            history=tuple(history),
            ended=plain["ended"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(uri, f"it is not a record of a step ({type(error).__name__}: {error})", remedy) from error


def best(records: Sequence[Record], committed: Collection[int]) -> Record | None:
    """Return the record with the highest validation score whose checkpoint exists, or None; the latest in a tie."""
    scored = [record for record in records if record.scores and record.step in committed]
    return max(scored, key=lambda record: (score_of(record.scores), record.step)) if scored else None


@dataclass(frozen=True, kw_only=True)
class Ends:
    """The checkpoints that a run ends with; both exist and are whole."""

    last: int
    """Step of the last checkpoint; 0 if none was ever committed."""
    best: int
    scores: dict[str, float]
    """Scores of the best checkpoint."""
    notices: tuple[str, ...]
    """What the user should know about other checkpoints that are missing or damaged."""


def ends(run_uri: str, records: Sequence[Record]) -> Ends:
    """Find the newest and the best whole checkpoint, setting damaged ones aside. Raises DamagedError."""
    last, faults = newest_whole(run_uri)
    while True:
        committed = committed_steps(run_uri)
        found = best(records, committed)
        if found is None or found.step == last:
            break
        try:
            checkpoints.verify(checkpoint_uri(run_uri, found.step))
            break
        except TornCheckpointError as error:
            faults.append(str(error))
            set_aside(run_uri, found.step)
    notices = [f"{fault}; it is set aside" for fault in faults]
    wanted, step = best(records, [record.step for record in records]), found.step if found else last
    if wanted and wanted.step != step:
        instead = "the best one left" if found else "the last one, which was not scored,"
        notices.append(
            f"the checkpoint of the best evaluation ({score_of(wanted.scores):.1%} {called(wanted.scores)} at step "
            f"{wanted.step}) is missing: {instead} is {checkpoint_uri(run_uri, step)}"
        )
    return Ends(last=last, best=step, scores=found.scores if found else {}, notices=tuple(notices))


def about(run_uri: str) -> dict[str, Any]:
    """Return what a run is: its recipe, label sets, and dataset version. Raises CheckpointError if it is no run."""
    uri = storage.join(run_uri, ABOUT)
    try:
        return unseal(storage.read_bytes(uri), uri, _ABOUT_REMEDY)
    except NotFoundError:
        if steps := committed_steps(run_uri):
            return _about(run_uri, steps)
        raise CheckpointError(f"{run_uri} is no run's folder: it has neither {ABOUT} nor a checkpoint") from None


def delete_checkpoint(run_uri: str, step: int) -> None:
    """Delete a checkpoint, or its remains. The manifest goes first, so that a partial checkpoint never counts."""
    uri = checkpoint_uri(run_uri, step)
    storage.delete_file(storage.join(uri, checkpoints.MANIFEST))
    storage.delete_folder(uri)


def settle(run_uri: str, about: dict[str, Any]) -> int:
    """Write down what the run is, and return the step from which it resumes (0: none was committed yet).

    Raises CheckpointError, with the differences, if there are steps of another run, and DamagedError.
    """
    step, before = _compare(run_uri, about)
    uri = storage.join(run_uri, ABOUT)
    if not step or not storage.exists(uri):
        storage.write_bytes(uri, seal(before))
    return step


def compare(run_uri: str, about: dict[str, Any]) -> int:
    """Do the same as `settle`, and write nothing."""
    return _compare(run_uri, about)[0]


def _compare(run_uri: str, about: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Return the newest step, and what the run is."""
    uri, steps, now = storage.join(run_uri, ABOUT), committed_steps(run_uri), {"format": FORMAT, **about}
    if not steps:
        return 0, now
    try:
        data = storage.read_bytes(uri)
    except NotFoundError:
        # A checkpoint does not say what its run extends.
        before = _about(run_uri, steps) | ({"extends": about["extends"]} if "extends" in about else {})
    else:
        before = unseal(data, uri, _ABOUT_REMEDY)
    changed = difference(with_defaults(before), with_defaults(unseal(seal(now), uri, "")))
    if changed:
        raise CheckpointError(
            f"{run_uri} is a run with other settings, and would not be the same run if it resumed:\n  "
            + "\n  ".join(line.removeprefix("recipe.") for line in changed)
            + "\nSet them back, or choose another --name"
            + (
                f", and give it --extend {run_uri} to go on from what this run has learned"
                if any(line.startswith("recipe.loop.epochs:") for line in changed)
                else ""
            )
        )
    return steps[-1], before


def _about(run_uri: str, steps: Sequence[int]) -> dict[str, Any]:
    """Return what a run is, from the newest of its checkpoints that can be read."""
    for step in reversed(steps):
        try:
            saved = checkpoints.load(checkpoint_uri(run_uri, step), parts=())
        except CheckpointError:
            continue
        return {
            "format": FORMAT,
            "recipe": saved.recipe,
            "label_sets": saved.label_sets,
            "dataset_version": saved.dataset_version,
        }
    raise damaged(
        storage.join(run_uri, ABOUT),
        "it is not there, and no checkpoint says what the run is",
        "Put it back from a copy, or choose another --name",
    )
