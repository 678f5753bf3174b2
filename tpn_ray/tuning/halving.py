"""SUCCESSIVE HALVING: trials pause at rungs with exact checkpoints, and the best resume. Runs on the driver; no Ray.

What comes next is computed from the journal alone (`rungs.py`), so a campaign that was killed continues as if it had
not been: nothing is trained twice, and the final table is the same.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tpn_ray.errors import CheckpointError, ConfigError, TrainingError
from tpn_ray.tuning import rungs, search
from tpn_ray.tuning.journal import Journal, Kind, Transition, Trial
from tpn_ray.tuning.rungs import Bracket, Due, Objectives
from tpn_ray.tuning.space import Sample, Space

LOOK_SECONDS = 1.0
TRIALS_OWN = (TrainingError, ConfigError, CheckpointError)
"""Errors that belong to one trial, which is then a row with its reason; others end the campaign, which can resume."""

Train = Callable[[Trial, int], Trial]
"""Trains a trial up to an epoch and returns it with that epoch's point. It writes the journal along the way."""


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


def successive_halving(
    journal: Journal,
    wanted: Search,
    bracket: Bracket,
    *,
    train: Train,
    max_concurrent: int,
    look: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Trial]:
    """Run or resume the campaign, and return all trials, best first. `look` is called every second and may raise."""
    trials = {trial.number: trial for trial in _suggested(journal, journal.waves())}
    running = set[int]()
    finished: queue.Queue[tuple[Trial, BaseException | None]] = queue.Queue()
    while True:
        _suggest(journal, wanted, bracket, trials, say)
        for work in rungs.due(list(trials.values()), bracket, wanted.objectives):
            if len(running) < max_concurrent and work.trial.number not in running:
                running.add(work.trial.number)
                if work.trial.points:
                    say(f"{work.trial.name} resumes from epoch {work.trial.epochs} to {work.epoch}")
                _start(_promoted(work), train, finished)
        if not running:
            return rungs.ranked(list(trials.values()))
        trial, error = _next(finished, look)
        running.remove(trial.number)
        trials[trial.number] = _settled(journal, trial, error)


def train_all(
    journal: Journal, due: Sequence[Due], *, train: Train, max_concurrent: int, look: Callable[[], None]
) -> list[Trial]:
    """Train each of them, in order, at most `max_concurrent` at the same time."""
    waiting, running, done = list(due), 0, list[Trial]()
    finished: queue.Queue[tuple[Trial, BaseException | None]] = queue.Queue()
    while waiting or running:
        while waiting and running < max_concurrent:
            _start(waiting.pop(0), train, finished)
            running += 1
        done.append(_settled(journal, *_next(finished, look)))
        running -= 1
    return done


def _suggest(
    journal: Journal, wanted: Search, bracket: Bracket, trials: dict[int, Trial], say: Callable[[str], None]
) -> None:
    """Suggest every wave that may be suggested."""
    sizes = wanted.waves(bracket)
    while True:
        wave = 1 + max((trial.wave for trial in trials.values()), default=-1)
        known = list(trials.values())
        if wave >= len(sizes) or not rungs.may_suggest(wave, known, bracket, wanted.objectives):
            return
        samples = search.suggest(
            wanted.searcher,
            search.Question(
                space=wanted.space,
                is_valid=wanted.is_valid,
                seen=rungs.visible(wave, known, bracket, wanted.objectives),
                first=len(trials),
                count=sizes[wave],
                seed=wanted.seed,
            ),
        )
        if not samples:
            return
        samples = journal.write_wave(wave, samples)
        say(f"trials {len(trials)} to {len(trials) + len(samples) - 1} suggested")
        trials |= {
            number: Trial(number=number, sample=sample, wave=wave) for number, sample in enumerate(samples, len(trials))
        }


def _suggested(journal: Journal, waves: Sequence[Sequence[Sample]]) -> list[Trial]:
    """Return the trials of all waves so far, as far as each has come."""
    known = {trial.number: trial for trial in journal.trials()}
    trials: list[Trial] = []
    for wave, samples in enumerate(waves):
        for sample in samples:
            new = Trial(number=len(trials), sample=sample, wave=wave)
            trials.append(known.get(new.number, new))
    return trials


def _promoted(work: Due) -> Due:
    """Enter a promotion into the trial's lineage once, however often the work is started."""
    promotion = Transition(kind=Kind.PROMOTED, epoch=work.since)
    if not work.since or promotion in work.trial.lineage:
        return work
    return dataclasses.replace(work, trial=dataclasses.replace(work.trial, lineage=(*work.trial.lineage, promotion)))


def _start(work: Due, train: Train, finished: queue.Queue[tuple[Trial, BaseException | None]]) -> None:
    def go() -> None:
        try:
            finished.put((train(work.trial, work.epoch), None))
        except BaseException as error:  # handed to the campaign's thread
            finished.put((work.trial, error))

    # A daemon, so that a campaign that ends with an error does not wait for its trials.
    threading.Thread(target=go, name=work.trial.name, daemon=True).start()


def _next(
    finished: queue.Queue[tuple[Trial, BaseException | None]], look: Callable[[], None]
) -> tuple[Trial, BaseException | None]:
    while True:
        look()
        try:
            return finished.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            continue


def _settled(journal: Journal, trial: Trial, error: BaseException | None) -> Trial:
    if error is None:
        return trial
    if not isinstance(error, TRIALS_OWN):
        raise error
    latest = journal.read(trial.number) or trial
    failed = dataclasses.replace(latest, failure=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
    journal.write(failed)
    return failed
