"""A record of what was trained on: each worker writes down the clips of every step that it takes part in.

There is one file of JSON lines per start and rank; its first line gives the step from which the start resumed. A start
counts up to the step from which the next one resumed: work beyond that was lost and is redone. Runs anywhere.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tpn_ray.data.plan import Plan


class OrderLedger:
    """Writes the lines of one rank. A line is complete on disk before the step's result can be in a checkpoint."""

    def __init__(self, folder: str, start: int, rank: int, first_step: int) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._file = (Path(folder) / f"{start:020d}-{rank:04d}.jsonl").open("a")
        self._put({"first_step": first_step})

    def trained(self, step: int, number: int, positions: Sequence[int]) -> None:
        """Record that micro-batch `number` of `step` (from 0) is about to be trained."""
        self._put({"step": step, "number": number, "positions": list(positions)})

    def _put(self, line: object) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def check(folder: str, plan: Plan) -> list[str]:
    """Return the faults in the order of a finished run; empty if every clip of the plan was trained exactly once."""
    starts = _read(Path(folder))
    faults = []
    for place, start in enumerate(starts):
        end = starts[place + 1].first_step if place + 1 < len(starts) else plan.steps
        for step in range(start.first_step, end):
            trained = start.trained.get(step, [])
            planned = [(n, tuple(plan.slot(n, 1, step).positions.tolist())) for n in range(plan.micro_batches(step))]
            for micro_batch, times in (Counter(trained) - Counter(planned)).items():
                faults.append(f"step {step}: micro-batch {micro_batch[0]} {times} time(s) too often: {micro_batch[1]}")
            missing = Counter(planned) - Counter(trained)
            faults += [f"step {step}: micro-batch {number} was not trained" for number, _ in missing]
    if not starts or starts[0].first_step != 0:
        faults.append("the beginning is missing")
    return faults


class _Start:
    def __init__(self, first_step: int) -> None:
        self.first_step = first_step
        self.trained: dict[int, list[tuple[int, tuple[int, ...]]]] = {}


def _read(folder: Path) -> list[_Start]:
    """Read all starts in order, merging the lines of their ranks."""
    starts: dict[str, _Start] = {}
    for path in sorted(folder.glob("*.jsonl")):
        lines = path.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]  # a kill may tear the last one
        if not whole:
            continue
        start = starts.setdefault(path.name.partition("-")[0], _Start(json.loads(whole[0])["first_step"]))
        for line in map(json.loads, whole[1:]):
            start.trained.setdefault(line["step"], []).append((line["number"], tuple(line["positions"])))
    return [starts[name] for name in sorted(starts)]
