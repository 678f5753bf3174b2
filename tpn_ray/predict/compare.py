"""Comparison of two sets of scores of the same videos: is one better, and where? Pure; runs anywhere.

Everything is paired: what counts is not the two accuracies but the videos that only one of the two gets right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tpn_ray import output
from tpn_ray.errors import ConfigError
from tpn_ray.metrics import mcnemar_exact, resampled_means
from tpn_ray.predict.labels import LabelSets
from tpn_ray.predict.summary import by_label_set

Named = tuple[pa.Table, LabelSets]
"""The result of `table.read_scores`."""


@dataclass(frozen=True)
class ClassGain:
    """Accuracy of one class in both."""

    name: str
    videos: int
    first: float
    second: float

    @property
    def gain(self) -> float:
        """Advantage of the second in top-1."""
        return self.second - self.first


@dataclass(frozen=True)
class Comparison:
    """Comparison of one label set, over the videos that both could use."""

    name: str
    videos: int
    first: float
    second: float
    """Top-1 of each."""
    interval: tuple[float, float]
    """95 % interval of second - first, by resampling videos."""
    only_first: int
    only_second: int
    """Number of videos that only one of them gets right."""
    p_mcnemar: float
    """Exact probability that two equally good networks differ by this much or more."""
    p_bootstrap: float
    """Twice the share of resamples in which the difference does not have its sign."""
    classes: list[ClassGain]

    @property
    def difference(self) -> float:
        """Advantage of the second in top-1."""
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
        said = f"{verdict(self)}; 95 % interval {_points(low)} to {_points(high)} points, only the first is right on "
        said += f"{self.only_first} videos, only the second on {self.only_second}"
        return output.html_table(rows, ("", "videos", "first", "second", "points")) + f"<p>{said}</p>"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def compare(first: Named, second: Named) -> list[Comparison]:
    """Return one comparison per label set. Raises ConfigError if the two do not have the same videos and classes."""
    if list(first[1]) != list(second[1]):
        raise ConfigError(f"the first has scores for {', '.join(first[1])}, the second for {', '.join(second[1])}")
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
        raise ConfigError("the two have no video in common; score both checkpoints on the same dataset and split")
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
    against = (means <= 0).sum() if b.mean() >= a.mean() else (means >= 0).sum()
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
        p_bootstrap=min(1.0, 2 * float(against + 1) / (len(means) + 1)),
        classes=_class_gains(np.array([first[id][0] for id in common]), a, b),
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
    if found.p_mcnemar >= 0.05:
        return f"no significant difference on {found.videos} videos (p = {found.p_mcnemar:.2g})"
    better = second if found.difference > 0 else "first"
    return f"the {better} is better (p = {found.p_mcnemar:.2g})"
