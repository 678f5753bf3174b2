"""What a campaign has decided and measured, in storage: nothing that is in it is decided or measured twice.

    campaign.json       what the campaign is; it goes on only as the same
    waves/0000.json     samples that were suggested together, written before the first of them starts
    trials/0000.json    one trial: its scores by epoch, the times it held its resources, how it failed

Every file is written whole, so a kill leaves the old one or the new one. Runs on the driver, and in Tune trials.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from tpn_ray import storage
from tpn_ray.errors import CheckpointError, NotFoundError
from tpn_ray.tune.space import Sample


@dataclass(frozen=True, kw_only=True)
class Point:
    """A trial, evaluated."""

    epoch: int
    scores: dict[str, float]
    """val_top1, val_loss and so on."""
    checkpoint: str
    train_loss: float | None = None
    """Mean since the last point; None where it was measured by a process that is gone."""

    @property
    def top1(self) -> float:
        return self.scores["val_top1"]


@dataclass(frozen=True, kw_only=True)
class Held:
    """A time in which a trial held its resources; seconds since 1970."""

    session: str
    """The process of the driver: what two of them hold is not compared."""
    begin: float
    started: float
    """When its workers began to train; `end` if they never did."""
    end: float


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial as far as it has come."""

    number: int
    sample: Sample
    wave: int = 0
    repeat_of: int | None = None
    """The trial whose setting this one repeats with another seed."""
    points: tuple[Point, ...] = ()
    """By rising epoch."""
    held: tuple[Held, ...] = ()
    lineage: tuple[str, ...] = ()
    """What happened to it, in words."""
    failure: str = ""
    stopped: bool = False
    """A scheduler ended it before its last epoch, for good."""
    run: str = ""
    """Name of its training run, where that is not the trial's: after a mutation."""
    start_from: str = ""
    """The other trial's checkpoint that this run began from."""
    mlflow_run: str = ""
    placement_group: str = ""
    """Id of what holds, or held, the resources of its workers."""

    @property
    def name(self) -> str:
        return f"trial-{self.number:04d}"

    @property
    def epochs(self) -> int:
        """Epochs after which it was evaluated last."""
        return self.points[-1].epoch if self.points else 0

    @property
    def top1(self) -> float:
        """Validation top-1 at its last epoch; -1 if it was never evaluated."""
        return self.points[-1].top1 if self.points else -1.0

    @property
    def seconds(self) -> float:
        """How long it held its resources."""
        return sum(held.end - held.begin for held in self.held)

    def at(self, epoch: int) -> Point | None:
        """Its evaluation after exactly that epoch."""
        return next((point for point in self.points if point.epoch == epoch), None)

    def with_point(self, point: Point) -> Trial:
        """With one more evaluation; one of the same epoch is replaced."""
        kept = [old for old in self.points if old.epoch != point.epoch]
        return dataclasses.replace(self, points=tuple(sorted([*kept, point], key=lambda one: one.epoch)))


_TRIAL = TypeAdapter(Trial)


@dataclass(frozen=True, kw_only=True)
class Journal:
    """The files below one folder."""

    uri: str

    def begin(self, settings: dict[str, Any]) -> bool:
        """Write what the campaign is; True if it goes on. Refuses one of other settings, with what differs."""
        place = storage.join(self.uri, "campaign.json")
        new = json.loads(json.dumps(settings))
        try:
            old = json.loads(storage.read_bytes(place))
        except NotFoundError:
            storage.write_bytes(place, json.dumps(new, indent=1).encode())
            return False
        before, now = _flat(old), _flat(new)
        changed = [
            f"{name}: {before.get(name)!r} then, {now.get(name)!r} now"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise CheckpointError(
                f"{self.uri} is a campaign of other settings, and would not be the same if it went on:\n  "
                + "\n  ".join(changed)
                + "\nSet them back, or choose another --name"
            )
        return True

    def write_wave(self, wave: int, samples: list[Sample]) -> list[Sample]:
        """Keep what was suggested; gives it as it will be read, with lists for tuples."""
        data = json.dumps(samples)
        storage.write_bytes(storage.join(self.uri, f"waves/{wave:04d}.json"), data.encode())
        stored: list[Sample] = json.loads(data)
        return stored

    def waves(self) -> list[list[Sample]]:
        """What was suggested, in order."""
        return [json.loads(data) for data in self._files("waves")]

    def write(self, trial: Trial) -> None:
        """Keep a trial as far as it has come."""
        data = json.dumps(_TRIAL.dump_python(trial, mode="json"), indent=1)
        storage.write_bytes(storage.join(self.uri, f"trials/{trial.number:04d}.json"), data.encode())

    def read(self, number: int) -> Trial | None:
        """One trial, if it was ever written."""
        try:
            return _TRIAL.validate_json(storage.read_bytes(storage.join(self.uri, f"trials/{number:04d}.json")))
        except NotFoundError:
            return None

    def trials(self) -> list[Trial]:
        """All trials that were ever written, by number."""
        return [_TRIAL.validate_json(data) for data in self._files("trials")]

    def _files(self, folder: str) -> list[bytes]:
        try:
            found = storage.list_files(storage.join(self.uri, folder), suffixes=(".json",))
        except NotFoundError:
            return []
        return [storage.read_bytes(file.uri) for file in found if not storage.name(file.uri).startswith(".")]


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
