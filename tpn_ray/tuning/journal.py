"""A campaign's decisions and measurements, in storage: nothing in it is decided or measured twice.

    campaign.json       what the campaign is; it resumes only with the same settings
    waves/0000.json     samples that were suggested together, written before the first of them starts
    trials/0000.json    one trial: its scores by epoch, the times it held its resources, how it failed

Every file is written whole, so that a kill leaves the old one or the new one, and only under the campaign's lease. Each
holds a hash of itself. Runs on the driver, and in Tune trials.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tpn_ray import storage
from tpn_ray.errors import CheckpointError, NotFoundError
from tpn_ray.lease import Token
from tpn_ray.recipe import with_defaults
from tpn_ray.score import called, score_of
from tpn_ray.sealed import damaged, seal, unseal
from tpn_ray.tuning.space import Sample


@dataclass(frozen=True, kw_only=True)
class Point:
    """One evaluation of a trial."""

    epoch: int
    scores: dict[str, float]
    """val_top1 or val_map, val_loss, and so on."""
    checkpoint: str
    train_loss: float | None = None
    """Mean training loss since the last point; None if the process that measured it is gone."""

    @property
    def score(self) -> float:
        """Top-1, or mAP where videos have several classes."""
        return score_of(self.scores)


@dataclass(frozen=True, kw_only=True)
class Held:
    """A period in which a trial held its resources. Times are seconds since 1970."""

    session: str
    """Driver process; the times of two sessions are not compared."""
    begin: float
    started: float
    """When its workers started to train; `end` if they never did."""
    end: float


class Kind(StrEnum):
    """What can happen to a trial."""

    PROMOTED = "promoted"
    MUTATED = "mutated"
    ENDED = "ended"


@dataclass(frozen=True, kw_only=True)
class Transition:
    """What happened to a trial at an epoch."""

    kind: Kind
    epoch: int
    donor: int | None = None
    """Number of the trial whose weights a mutant started from."""
    detail: str = ""
    """Fields that a mutation changed, or why a run ended."""

    def __str__(self) -> str:
        begin = {Kind.MUTATED: f"from trial {self.donor}"}.get(self.kind, self.kind.value)
        return f"{begin} at epoch {self.epoch}" + (f": {self.detail}" if self.detail else "")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial, as far as it has come."""

    number: int
    sample: Sample
    wave: int = 0
    repeat_of: int | None = None
    """Number of the trial whose settings this one repeats with another seed."""
    points: tuple[Point, ...] = ()
    """Evaluations, by ascending epoch."""
    held: tuple[Held, ...] = ()
    lineage: tuple[Transition, ...] = ()
    """What happened to it, in order."""
    failure: str = ""
    stopped: bool = False
    """Whether a scheduler ended it for good before its last epoch."""
    run: str = ""
    """Name of its training run, if that is not the trial's: after a mutation or at a higher rung of a fidelity."""
    start_from: str = ""
    """Another trial's checkpoint from which this run started."""
    mlflow_run: str = ""
    placement_group: str = ""
    """Id of the placement group that holds, or held, its workers' resources."""

    @property
    def name(self) -> str:
        return f"trial-{self.number:04d}"

    @property
    def history(self) -> list[str]:
        """What the trial is and what happened to it, in words."""
        repeats = f"repeats trial {self.repeat_of} with seed {self.sample.get('loop.seed')}"
        stopped = f"stopped at epoch {self.epochs}"
        lines = [repeats] * (self.repeat_of is not None) + [str(one) for one in self.lineage]
        return lines + [stopped] * self.stopped

    @property
    def epochs(self) -> int:
        """Epoch of the last evaluation; 0 if there is none."""
        return self.points[-1].epoch if self.points else 0

    @property
    def score(self) -> float:
        """Validation score at the last evaluation; -1 if there is none."""
        return self.points[-1].score if self.points else -1.0

    @property
    def score_name(self) -> str:
        """What people call its score: top-1 or mAP."""
        return called(self.points[-1].scores if self.points else {})

    @property
    def seconds(self) -> float:
        """Total time for which it held its resources."""
        return sum(held.end - held.begin for held in self.held)

    def at(self, epoch: int) -> Point | None:
        """Return its evaluation after exactly that epoch, or None."""
        return next((point for point in self.points if point.epoch == epoch), None)

    def with_point(self, point: Point) -> Trial:
        """Return the trial with one more evaluation; one of the same epoch is replaced."""
        kept = [old for old in self.points if old.epoch != point.epoch]
        return dataclasses.replace(self, points=tuple(sorted([*kept, point], key=lambda one: one.epoch)))


_TRIAL = TypeAdapter(Trial)
_SAMPLES = TypeAdapter(list[Sample])
_CAMPAIGN_REMEDY = (
    "Put it back from a copy, or delete it and give the command with exactly the settings that it had: it is then "
    "written again"
)
_WAVE_REMEDY = (
    "Put it back from a copy; or, if it is the newest one, delete it: the same command suggests the same samples again"
)
_TRIAL_REMEDY = (
    "Put it back from a copy, or delete it: the same command then takes what was measured from the trial's own run"
)


@dataclass(frozen=True, kw_only=True)
class Journal:
    """The files of a campaign, below one folder."""

    uri: str
    token: Token | None = None
    """Token of the lease under which they are written; None for a caller that only reads or is the only writer
    anyway."""

    def begin(self, settings: dict[str, Any]) -> bool:
        """Write what the campaign is, and return whether it resumes. Raises CheckpointError, with the differences, for
        other settings."""
        return not storage.create(storage.join(self.uri, "campaign.json"), seal(settings)) and self.compare(settings)

    def compare(self, settings: dict[str, Any]) -> bool:
        """Return whether there is a campaign, and write nothing. Raises CheckpointError, with the differences, if it
        has other settings."""
        place = storage.join(self.uri, "campaign.json")
        try:
            old = unseal(storage.read_bytes(place), place, _CAMPAIGN_REMEDY)
        except NotFoundError:
            return False
        before, now = _flat(with_defaults(_renamed(old))), _flat(with_defaults(json.loads(json.dumps(settings))))
        changed = [
            f"{name}: {before.get(name)!r} then, {now.get(name)!r} now"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise CheckpointError(
                f"{self.uri} is a campaign with other settings, and would not be the same if it resumed:\n  "
                + "\n  ".join(changed)
                + "\nSet them back, or choose another --name"
            )
        return True

    def write_wave(self, wave: int, samples: list[Sample]) -> list[Sample]:
        """Write the suggested samples, and return them as they will be read, with lists for tuples."""
        self._put(f"waves/{wave:04d}.json", {"samples": samples})
        stored: list[Sample] = json.loads(json.dumps(samples))
        return stored

    def waves(self) -> list[list[Sample]]:
        """Return the suggested samples of each wave, in order."""
        return [_wave(uri, data) for uri, data in self._files("waves")]

    def write(self, trial: Trial) -> None:
        """Write a trial as far as it has come."""
        self._put(f"trials/{trial.number:04d}.json", _TRIAL.dump_python(trial, mode="json"))

    def read(self, number: int) -> Trial | None:
        """Return one trial, or None if it was never written."""
        uri = storage.join(self.uri, f"trials/{number:04d}.json")
        try:
            return _trial(uri, storage.read_bytes(uri))
        except NotFoundError:
            return None

    def trials(self) -> list[Trial]:
        """Return all trials that were ever written, by number."""
        return [_trial(uri, data) for uri, data in self._files("trials")]

    def _put(self, name: str, content: dict[str, Any]) -> None:
        if self.token:
            self.token.check()
        storage.write_bytes(storage.join(self.uri, name), seal(content))

    def _files(self, folder: str) -> list[tuple[str, bytes]]:
        try:
            found = storage.list_files(storage.join(self.uri, folder), suffixes=(".json",))
        except NotFoundError:
            return []
        named = [file.uri for file in found if not storage.name(file.uri).startswith(".")]
        return [(uri, storage.read_bytes(uri)) for uri in named]


def _trial(uri: str, data: bytes) -> Trial:
    content = unseal(data, uri, _TRIAL_REMEDY)
    if isinstance(content.get("lineage"), list):
        content["lineage"] = [one for line in content["lineage"] if (one := _transition(line))]
    try:
        return _TRIAL.validate_json(json.dumps(content))
    except ValidationError as error:
        raise damaged(uri, f"it is not a trial: {_first(error)}", _TRIAL_REMEDY) from error


def _transition(line: Any) -> Any:
    """Convert a lineage entry that an earlier version wrote as a sentence; "" for what other fields also say."""
    if not isinstance(line, str):
        return line
    if re.match(r"repeats trial \d+ with seed|stopped at epoch", line):
        return ""
    found = re.fullmatch(r"(promoted|ended|from trial (?P<donor>\d+)) at epoch (?P<epoch>\d+)(: (?P<detail>.*))?", line)
    if not found:
        return line  # refused later as no transition
    kind = Kind.MUTATED if found["donor"] else found[1]
    return {"kind": kind, "epoch": found["epoch"], "donor": found["donor"], "detail": found["detail"] or ""}


def _wave(uri: str, data: bytes) -> list[Sample]:
    if data.lstrip().startswith(b"["):  # written by an earlier version
        data = b'{"samples": ' + data + b"}"
    content = unseal(data, uri, _WAVE_REMEDY)
    try:
        return _SAMPLES.validate_json(json.dumps(content.get("samples")))
    except ValidationError as error:
        raise damaged(uri, f"it holds no samples: {_first(error)}", _WAVE_REMEDY) from error


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"


def _renamed(settings: dict[str, Any]) -> dict[str, Any]:
    """Give settings written by an earlier version their current names."""
    names = {"keep": "reduction_factor", "finalists": "min_promoted"}
    renamed = {names.get(name, name): value for name, value in settings.items()}
    return {**renamed, "scheduler": "halving"} if settings.get("scheduler") == "promote" else renamed


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
