"""Comparison of two sets of scores of the same videos: is one better, and where? Pure; runs anywhere.

Everything is paired: what counts is not the two accuracies but the videos that only one of the two gets right. Where
videos have several classes, mAP is compared, on the same resamples of the videos for both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tpn_ray import output
from tpn_ray.errors import ConfigError
from tpn_ray.metrics import (
    average_precisions,
    mcnemar_exact,
    mean_average_precision,
    resampled_average_precisions,
    resampled_means,
)
from tpn_ray.predict.labels import LabelSets
from tpn_ray.predict.summary import by_label_set, is_multi_label, ranked_classes
from tpn_ray.score import score_name

Named = tuple[pa.Table, LabelSets]
"""The result of `table.read_scores`."""

NOTHING_IN_COMMON = "the two have no video in common; score both checkpoints on the same dataset and split"


@dataclass(frozen=True)
class ClassGain:
    """Accuracy of one class in both, or its average precision."""

    name: str
    videos: int
    first: float
    second: float

    @property
    def gain(self) -> float:
        """Advantage of the second."""
        return self.second - self.first


@dataclass(frozen=True)
class Comparison:
    """Comparison of one label set, over the videos that both could use."""

    name: str
    videos: int
    first: float
    second: float
    """Score of each: top-1 or mAP."""
    interval: tuple[float, float]
    """95 % interval of second - first, by resampling videos."""
    only_first: int | None
    only_second: int | None
    """Number of videos that only one of them gets right; None for mAP."""
    p_mcnemar: float | None
    """Exact probability that two equally good networks differ by this much or more; None for mAP."""
    p_bootstrap: float
    """Twice the share of resamples in which the difference does not have its sign."""
    classes: list[ClassGain]
    score: str = score_name(multi_label=False)
    """What is compared: top-1 or mAP."""

    @property
    def p(self) -> float:
        """The p-value that decides: McNemar's, or for mAP the bootstrap's."""
        return self.p_bootstrap if self.p_mcnemar is None else self.p_mcnemar

    @property
    def difference(self) -> float:
        """Advantage of the second."""
        return self.second - self.first

    def _repr_html_(self) -> str:
        """Show the comparison in a notebook: what is tested, and each class."""
        low, high = self.interval
        every = (f"all ({self.name})", self.videos, self.first, self.second, self.difference)
        rows = [
            (name, str(videos), f"{first:.1%}", f"{second:.1%}", _points(gain))
            for name, videos, first, second, gain in [
                every,
                *((one.name, one.videos, one.first, one.second, one.gain) for one in self.classes),
            ]
        ]
        said = f"{verdict(self)}; 95 % interval {_points(low)} to {_points(high)} points"
        if self.only_first is not None:
            said += f", only the first is right on {self.only_first} videos, only the second on {self.only_second}"
        return output.html_table(rows, (self.score, "videos", "first", "second", "points")) + f"<p>{said}</p>"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def compare(first: Named, second: Named) -> list[Comparison]:
    """Return one comparison per label set. Raises ConfigError if the two do not have the same videos and classes."""
    if list(first[1]) != list(second[1]):
        raise ConfigError(f"the first has scores for {', '.join(first[1])}, the second for {', '.join(second[1])}")
    if is_multi_label(first[0]) != is_multi_label(second[0]):
        raise ConfigError("one of the two has several classes a video, the other one; score both on the same dataset")
    if is_multi_label(first[0]):
        return [_compare_ranked(first, second)]
    hits = [_hits(*one) for one in (first, second)]
    return [_compare(name, hits[0][name], hits[1][name]) for name in first[1]]


def _hits(table: pa.Table, label_sets: LabelSets) -> dict[str, dict[str, tuple[str, bool]]]:
    """Return, per label set, id -> (class, right or not) of the videos that count."""
    ids = table["id"].to_pylist()
    return {
        one.name: {
            ids[row]: (one.classes[label], bool(place == 0))
            for row, label, place in zip(one.rows.tolist(), one.labels.tolist(), one.ranks.tolist(), strict=True)
        }
        for one in by_label_set(table, label_sets)
    }


def _compare(name: str, first: dict[str, tuple[str, bool]], second: dict[str, tuple[str, bool]]) -> Comparison:
    common = sorted(first.keys() & second.keys())
    if not common:
        raise ConfigError(NOTHING_IN_COMMON)
    differing = [id for id in common if first[id][0] != second[id][0]]
    if differing:
        id = differing[0]
        raise ConfigError(
            f"{len(differing)} videos have another class in the second than in the first, such as {id}: "
            f"{second[id][0]!r} and {first[id][0]!r}; score both checkpoints on the same dataset"
        )
    a, b = (np.array([one[id][1] for id in common], dtype=bool) for one in (first, second))
    means = resampled_means(b.astype(np.float64) - a)
    low, high = np.percentile(means, [2.5, 97.5])
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    return Comparison(
        name=name,
        videos=len(common),
        first=float(a.mean()),
        second=float(b.mean()),
        interval=(float(low), float(high)),
        only_first=only_first,
        only_second=only_second,
        p_mcnemar=mcnemar_exact(only_first, only_second),
        p_bootstrap=_p_bootstrap(means, float(b.mean() - a.mean())),
        classes=_class_gains(np.array([first[id][0] for id in common]), a, b),
    )


def _p_bootstrap(differences: NDArray[np.float64], difference: float) -> float:
    against = (differences <= 0).sum() if difference >= 0 else (differences >= 0).sum()
    return min(1.0, 2 * float(against + 1) / (len(differences) + 1))


def _compare_ranked(first: Named, second: Named) -> Comparison:
    a, b = (ranked_classes(*one) for one in (first, second))
    if a.classes != b.classes:
        raise ConfigError("the two have other classes, or in another order; score both on the same dataset")
    ids = [np.array(named[0]["id"].to_pylist())[one.rows] for named, one in ((first, a), (second, b))]
    common, mine, its = np.intersect1d(ids[0], ids[1], return_indices=True)
    if not len(common):
        raise ConfigError(NOTHING_IN_COMMON)
    labels = a.labels[mine]
    if differing := (labels != b.labels[its]).any(axis=1).sum():
        raise ConfigError(f"{differing} videos have other classes in the second; score both on the same dataset")
    both = a.scores[mine], b.scores[its]
    mean, other = (mean_average_precision(scores, labels) for scores in both)
    # The same seed draws the same videos for both.
    drawn, drawn_other = (resampled_average_precisions(scores, labels) for scores in both)
    low, high = np.nanpercentile(drawn_other - drawn, [2.5, 97.5])
    each = zip(
        a.classes,
        labels.sum(axis=0).tolist(),
        *(average_precisions(scores, labels).tolist() for scores in both),
        strict=True,
    )
    gains = [ClassGain(name, count, one, two) for name, count, one, two in each if count]
    return Comparison(
        name=a.name,
        videos=len(common),
        first=mean,
        second=other,
        interval=(float(low), float(high)),
        only_first=None,
        only_second=None,
        p_mcnemar=None,
        p_bootstrap=_p_bootstrap(drawn_other - drawn, other - mean),
        classes=sorted(gains, key=lambda one: (-one.gain, one.name)),
        score=score_name(multi_label=True),
    )


def _class_gains(names: NDArray[np.str_], a: NDArray[np.bool_], b: NDArray[np.bool_]) -> list[ClassGain]:
    """Return the gain of every class that occurs, the largest first."""
    gains = []
    for name in np.unique(names):
        mine = names == name
        gains.append(ClassGain(str(name), int(mine.sum()), float(a[mine].mean()), float(b[mine].mean())))
    return sorted(gains, key=lambda one: (-one.gain, one.name))


def left_out(first: Named, second: Named) -> list[str]:
    """Describe what the comparison does not cover, one line each."""
    ids = [set(one[0]["id"].to_pylist()) for one in (first, second)]
    lines = []
    if alone := len(ids[0] ^ ids[1]):
        lines.append(f"{alone} videos are in only one of the two and are left out")
    bad = {id for table, _ in (first, second) for id, reason in _reasons(table) if reason} & ids[0] & ids[1]
    if bad:
        lines.append(f"{len(bad)} videos could not be used by one or both and are left out")
    return lines


def _reasons(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(table["id"].to_pylist(), table["reason"].to_pylist(), strict=True))


def verdict(found: Comparison, second: str = "second") -> str:
    """State the result in words, at the 5 % level. `second` is what the second is called."""
    if found.p >= 0.05:
        return f"no significant difference on {found.videos} videos (p = {found.p:.2g})"
    better = second if found.difference > 0 else "first"
    return f"the {better} is better (p = {found.p:.2g})"
