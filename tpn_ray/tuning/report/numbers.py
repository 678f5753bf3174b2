"""A campaign's results as numbers: confidence, importance, rungs against the end, hours. Pure; runs anywhere."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import optuna
from scipy import stats

from tpn_ray.metrics import wilson_interval
from tpn_ray.score import MAP
from tpn_ray.tuning import search
from tpn_ray.tuning.journal import Trial
from tpn_ray.tuning.search import Direction
from tpn_ray.tuning.space import Sample, Space

ENOUGH, ENOUGH_TO_EXPLAIN = 4, 20
"""Numbers of trials below which a correlation, and an importance, mean nothing."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that a report shows."""

    name: str
    command: str
    """Command that trains the best recipe."""
    campaign_command: str
    space: Space
    epochs: int
    """Epochs of a whole run."""
    max_concurrent: int
    trials: tuple[Trial, ...]
    """Trials, best first, without repeats. Their samples have only the fields that have an effect."""
    repeats: tuple[Trial, ...]
    gmacs: dict[int, float]
    """GMACs of a view, by trial number."""

    @property
    def note(self) -> str:
        """Caveat about the best recipe; "" if the best trial had these settings from its first epoch."""
        best = self.trials[0]
        if not best.run:  # neither mutated nor above the first rung of a fidelity
            return ""
        return (
            f"{best.name} had other settings before ({'; '.join(best.history)}): the command trains the last ones from "
            "the start, and may score otherwise; what was scored is the checkpoint."
        )


@dataclass(frozen=True, kw_only=True)
class Hours:
    """Epochs trained, and hours for which machines were held."""

    epochs: int
    epochs_in_full: int
    """Epochs if all trials trained to the end."""
    held: float
    starting: float
    """Part of `held` before the workers trained."""
    in_full: float
    """Estimate of `held` with all trials trained in full, at the measured hours per epoch."""
    wall: float
    idle: float
    """Share of the machines' time (for `max_concurrent` trials) that no trial used."""


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """One setting under several seeds."""

    number: int
    scores: tuple[float, ...]
    """Scores of the trial itself, then of its repeats by ascending seed."""
    mean: float
    deviation: float
    difference: float
    """Difference to the setting with the best mean, over the seeds they share; negative is worse."""
    p: float | None
    """P-value of a two-sided paired t-test of that difference; None for the best, and if it cannot be tested."""


def interval(trial: Trial) -> tuple[float, float]:
    """Return the 95 % interval of a trial's accuracy, from the number of validation videos."""
    if not trial.points:
        return 0.0, 1.0
    videos = int(trial.points[-1].scores.get("val_videos", 0))
    return wilson_interval(round(trial.score * videos), videos)


def interval_text(trial: Trial, digits: int = 1) -> str:
    """Format a trial's `interval`; "-" if it has none: that of mAP takes the scores of every video."""
    if not trial.points or MAP in trial.points[-1].scores:
        return "-"
    low, high = interval(trial)
    return f"{low:.{digits}%} to {high:.{digits}%}"


def as_study(
    trials: Sequence[Trial],
    space: Space,
    values: Mapping[int, Sequence[float]],
    directions: Sequence[Direction] = ("maximize",),
) -> optuna.Study:
    """Give Optuna the trials that have values, under their own numbers; all other numbers count as failed there."""
    known = {
        one.number: search.as_trial(space, one.sample, values[one.number]) for one in trials if one.number in values
    }
    missing = optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL)
    return search.as_study([known.get(number, missing) for number in range(max(known) + 1)], directions)


def fair_study(trials: Sequence[Trial], space: Space, enough: int = ENOUGH) -> tuple[int, optuna.Study | None]:
    """Return the furthest epoch that half of the trials, and at least `enough`, reached, and the study of their
    accuracy there.

    The few trials beyond that epoch are no fair sample of the space. The study is None if there are too few trials even
    so.
    """
    for epoch in sorted({point.epoch for trial in trials for point in trial.points}, reverse=True):
        tops = {trial.number: (point.score,) for trial in trials if (point := trial.at(epoch))}
        if len(tops) >= max(enough, len(trials) / 2) and len(set(tops.values())) > 1:
            return epoch, as_study(trials, space, tops)
    return 0, None


def importances(trials: Sequence[Trial], space: Space) -> tuple[int, dict[str, float]]:
    """Return an epoch, and the share of the variance there that each field explains (fANOVA), largest first.

    Fields that some trial does not have are left out. Empty if there are too few trials to tell.
    """
    epoch, study = fair_study(trials, space, ENOUGH_TO_EXPLAIN)
    if study is None or not shared_fields(trials, space):
        return 0, {}
    fanova = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return epoch, optuna.importance.get_param_importances(study, evaluator=fanova)


def shared_fields(trials: Sequence[Trial], space: Space) -> list[str]:
    """Return the fields that all trials have."""
    return [field for field in space if all(field in trial.sample for trial in trials)]


def rung_correlations(trials: Sequence[Trial], last: int) -> list[tuple[int, int, float]]:
    """Return (epoch, trials, Spearman's rank correlation of accuracy at that epoch with accuracy at the last one)."""
    complete = [trial for trial in trials if trial.at(last) is not None]
    found = []
    for epoch in sorted({point.epoch for trial in complete for point in trial.points} - {last}):
        pairs = [(a.score, b.score) for trial in complete if (a := trial.at(epoch)) and (b := trial.at(last))]
        early, late = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        if len(pairs) >= ENOUGH and len(set(early)) > 1 and len(set(late)) > 1:
            found.append((epoch, len(pairs), float(stats.spearmanr(early, late).statistic)))
    return found


def hours(trials: Sequence[Trial], whole: int, max_concurrent: int) -> Hours:
    """Return the time held and saved. Idle time is counted within each submission, from its first trial to its last."""
    held = [one for trial in trials for one in trial.held]
    total = sum(one.end - one.begin for one in held) / 3600
    epochs = sum(trial.epochs for trial in trials)
    wall = 0.0
    for session in {one.session for one in held}:
        mine = [one for one in held if one.session == session]
        wall += (max(one.end for one in mine) - min(one.begin for one in mine)) / 3600
    in_full = len(trials) * whole
    return Hours(
        epochs=epochs,
        epochs_in_full=in_full,
        held=total,
        starting=sum(min(one.started, one.end) - one.begin for one in held) / 3600,
        in_full=total / epochs * in_full if epochs else 0.0,
        wall=wall,
        idle=max(0.0, 1 - total / (wall * max_concurrent)) if wall else 0.0,
    )


def repeated(trials: Sequence[Trial], repeats: Sequence[Trial]) -> list[Repeated]:
    """Compare each repeated setting with the one that has the best mean. Seeds are paired, since a seed determines the
    order and the draws."""
    by_seed: dict[int, dict[int, float]] = {}
    numbers = {trial.number: trial for trial in trials}
    for trial in repeats:
        if trial.repeat_of is not None and trial.points and not trial.failure:
            own = by_seed.setdefault(trial.repeat_of, {-1: numbers[trial.repeat_of].score})
            own[int(trial.sample["loop.seed"])] = trial.score
    if not by_seed:
        return []
    best = max(by_seed, key=lambda number: (statistics.mean(by_seed[number].values()), -number))
    rows = [_compared(number, by_seed[number], by_seed[best], number == best) for number in by_seed]
    return sorted(rows, key=lambda row: (-row.mean, row.number))


def _compared(number: int, mine: dict[int, float], best: dict[int, float], is_best: bool) -> Repeated:
    seeds = sorted(mine.keys() & best.keys())
    differences = [mine[seed] - best[seed] for seed in seeds]
    tested = not is_best and len(seeds) > 1 and len(set(differences)) > 1
    scores = tuple(mine[seed] for seed in sorted(mine))
    return Repeated(
        number=number,
        scores=scores,
        mean=statistics.mean(scores),
        deviation=statistics.stdev(scores) if len(scores) > 1 else 0.0,
        difference=statistics.mean(differences),
        p=float(stats.ttest_rel([mine[s] for s in seeds], [best[s] for s in seeds]).pvalue) if tested else None,
    )


def value_text(value: object) -> str:
    """Format a value of a sample briefly."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(tuple(value)) if isinstance(value, list) else str(value)


def setting_text(sample: Sample) -> str:
    """Format a sample in one line."""
    return "  ".join(f"{short(name)}={value_text(value)}" for name, value in sample.items())


def short(field: str) -> str:
    """Return the short name of a field for a table."""
    name = field.partition(".")[2].replace("lambdas", "lambda")
    return name.replace(".", " ")
