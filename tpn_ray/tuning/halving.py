"""SUCCESSIVE HALVING: which trial trains next, and how far. Runs on the driver; no Ray.

What comes next is computed from the journal alone (`rungs.py`), so a campaign that was killed continues as if it had
not been: nothing is trained twice, and the final table is the same. `schedulers.Halving` and `engine.Climbing` hand the
answers to Ray Tune.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tpn_ray.tuning import rungs, search
from tpn_ray.tuning.journal import Journal, Kind, Transition, Trial
from tpn_ray.tuning.rungs import Bracket, Due, Objectives
from tpn_ray.tuning.space import Sample, Space


@dataclass(frozen=True, kw_only=True)
class Search:
    """What to search, and how."""

    space: Space
    searcher: str
    samples: int
    seed: int
    is_valid: Callable[[Sample], bool]
    objectives: Objectives
    objectives_name: str = "top1"
    wave: int = 0
    """Number of trials suggested together; 0: all, or for a model as many as leave one at the last rung."""

    def waves(self, bracket: Bracket) -> list[int]:
        """Return the sizes of the waves."""
        model = self.searcher in search.MODELS
        size = self.wave or (bracket.reduction_factor ** (len(bracket.epochs) - 1) if model else self.samples)
        size = max(size, search.FIRST_BY_CHANCE) if model else size
        return [min(size, self.samples - begun) for begun in range(0, self.samples, size)]

    def suggest(self, seen: Sequence[search.Seen], first: int, count: int) -> list[Sample]:
        """Return the samples of `count` trials from number `first`, which may know the scores in `seen`."""
        return search.suggest(
            self.searcher,
            search.Question(
                space=self.space, is_valid=self.is_valid, seen=seen, first=first, count=count, seed=self.seed
            ),
        )


class Ladder:
    """The trials of a campaign, and what each may do next. The journal is the state; only what runs is kept here."""

    def __init__(
        self,
        journal: Journal,
        wanted: Search,
        bracket: Bracket,
        *,
        max_concurrent: int,
        say: Callable[[str], None],
        fixed: Sequence[Trial] | None = None,
    ) -> None:
        """Take up the campaign as the journal has it; `fixed` are trials to climb instead of suggested ones."""
        self.journal, self.wanted, self.bracket = journal, wanted, bracket
        self.max_concurrent, self.say, self._suggests = max_concurrent, say, fixed is None
        begun = {trial.number: trial for trial in journal.trials()}
        all_trials = _suggested(journal.waves()) if fixed is None else fixed
        self._trials = {trial.number: begun.get(trial.number, trial) for trial in all_trials}
        self._due: list[Due] | None = None
        self.running = set[int]()
        self.handed = set[int]()
        """Numbers of the trials that Ray Tune has."""

    @property
    def over(self) -> bool:
        """Whether nothing runs and nothing is left to do."""
        return not self.running and self.next() is None

    def next(self) -> Due | None:
        """Return what is to begin now: training, or else telling Ray Tune of a trial from an earlier submission."""
        if len(self.running) >= self.max_concurrent:
            return None
        if self._due is None:
            if self._suggests:
                self._suggest()
            self._due = rungs.due(list(self._trials.values()), self.bracket, self.wanted.objectives)
        waiting = (work for work in self._due if work.trial.number not in self.running)
        measured = (trial for number, trial in self._trials.items() if trial.points and number not in self.handed)
        return next(waiting, None) or next((Due(trial=trial, epoch=trial.epochs) for trial in measured), None)

    def begin(self, work: Due) -> None:
        """Record that this work begins. A promotion enters the trial's lineage once, however often it begins."""
        trial, promotion = work.trial, Transition(kind=Kind.PROMOTED, epoch=work.since)
        if work.epoch > trial.epochs:
            if work.since and promotion not in trial.lineage:
                trial = dataclasses.replace(trial, lineage=(*trial.lineage, promotion))
            self.journal.write(trial)  # its process reads it there
            if trial.points:
                self.say(f"{trial.name} resumes from epoch {trial.epochs} to {work.epoch}")
        self._trials[trial.number] = trial
        self.running.add(trial.number)
        self.handed.add(trial.number)

    def end(self, number: int) -> None:
        """Take note that a trial no longer runs: the journal has what it measured."""
        self.running.discard(number)
        self._trials[number] = self.journal.read(number) or self._trials[number]
        self._due = None

    def fail(self, number: int, reason: str) -> None:
        """Give a trial up."""
        self.journal.write(dataclasses.replace(self._trials[number], failure=reason))
        self.end(number)

    def _suggest(self) -> None:
        """Suggest every wave that may be suggested."""
        sizes = self.wanted.waves(self.bracket)
        while True:
            wave = 1 + max((trial.wave for trial in self._trials.values()), default=-1)
            known, first = list(self._trials.values()), len(self._trials)
            if wave >= len(sizes) or not rungs.may_suggest(wave, known, self.bracket, self.wanted.objectives):
                return
            seen = rungs.visible(wave, known, self.bracket, self.wanted.objectives)
            samples = self.wanted.suggest(seen, first, sizes[wave])
            if not samples:
                return
            samples = self.journal.write_wave(wave, samples)
            self.say(f"trials {first} to {first + len(samples) - 1} suggested")
            for number, sample in enumerate(samples, first):
                self._trials[number] = Trial(number=number, sample=sample, wave=wave)


def _suggested(waves: Sequence[Sequence[Sample]]) -> list[Trial]:
    """Return the trials of all waves so far, as they begin."""
    pairs = [(wave, sample) for wave, samples in enumerate(waves) for sample in samples]
    return [Trial(number=number, sample=sample, wave=wave) for number, (wave, sample) in enumerate(pairs)]
