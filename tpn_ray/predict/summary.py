"""From scores of videos to the numbers people quote, and what is behind them. Pure; runs anywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tpn_ray.errors import ConfigError
from tpn_ray.metrics import (
    average_precisions,
    bootstrap_interval,
    confusion_matrix,
    map_interval,
    mean_average_precision,
    mean_class_accuracy,
    mean_class_interval,
    ranks,
    wilson_interval,
)

MULTI_LABEL_KEY = b"tpn_ray.multi_label"
"""In the metadata of a table whose videos have several classes each: labels are then a 0 or 1 for each class."""

JOINT = "action"
"""Key for all labels of a video together, if it has several (verb and noun)."""

Labels = NDArray[np.int64]
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class LabelSetScores:
    """The videos that count for one label set: usable, and with a label."""

    name: str
    classes: tuple[str, ...]
    rows: NDArray[np.int64]
    """Their rows in the table."""
    ranks: NDArray[np.int64]
    """Ranks of the right class, from 0."""
    labels: Labels
    predicted: Labels


@dataclass(frozen=True)
class RankedClasses:
    """The usable videos of a table in which videos have several classes."""

    name: str
    classes: tuple[str, ...]
    rows: NDArray[np.int64]
    """Their rows in the table."""
    scores: Scores
    labels: NDArray[np.bool_]
    """(n, k): whether a video has a class."""


def is_multi_label(table: pa.Table) -> bool:
    """Return whether the videos of a table have several classes each."""
    return MULTI_LABEL_KEY in (table.schema.metadata or {})


def ranked_classes(table: pa.Table, label_sets: dict[str, tuple[str, ...]], bad: bool = False) -> RankedClasses:
    """Return what mAP is made of; with `bad`, also the videos that could not be used, ranked last."""
    ((name, classes),) = label_sets.items()
    usable = np.array([not reason for reason in table["reason"].to_pylist()], dtype=bool)
    scores = np.where(usable[:, None], scores_array(table).reshape(len(table), len(classes)), np.float32(-1.0))
    labels = np.array(table["labels"].to_pylist(), dtype=np.int64).reshape(len(table), len(classes)) > 0
    rows = np.flatnonzero(usable | bad)
    return RankedClasses(name, classes, rows, scores[rows], labels[rows])


def scores_array(table: pa.Table) -> Scores:
    """Return the scores of a table as (n, k)."""
    column = table["scores"].combine_chunks()
    return np.asarray(column.flatten(), dtype=np.float32).reshape(len(table), -1)


def by_label_set(table: pa.Table, label_sets: dict[str, tuple[str, ...]]) -> list[LabelSetScores]:
    """Return what counts for each label set. Raises ConfigError where videos have several classes."""
    if is_multi_label(table):
        raise ConfigError("these videos have several classes each: there is no top-1 to compute; mAP is their score")
    usable = np.array([not reason for reason in table["reason"].to_pylist()], dtype=bool)
    labels = np.array(table["labels"].to_pylist(), dtype=np.int64).reshape(len(table), len(label_sets))
    scores, start, found = scores_array(table), 0, []
    for column, (name, classes) in enumerate(label_sets.items()):
        part, start = scores[:, start : start + len(classes)], start + len(classes)
        rows = np.flatnonzero(usable & (labels[:, column] >= 0))
        own = labels[rows, column]
        predicted = np.argmax(part[rows], axis=1) if len(rows) else np.zeros(0, dtype=np.int64)
        found.append(LabelSetScores(name, classes, rows, ranks(part[rows], own), own, predicted))
    return found


def summarise(table: pa.Table, label_sets: dict[str, tuple[str, ...]], quarantined: int = 0) -> dict[str, float]:
    """Return top-1, top-5, and mean class accuracy per label set, over the usable videos that have a label.

    `..._of_all` counts bad videos, and those `quarantined` when the dataset was prepared, as wrong. Keys carry the
    label set's name if there are several; `action_...` then means that all labels are right at once (top-5: that the
    right combination is among the five with the highest product of scores).

    Where videos have several classes, returns mAP, its interval, and the number of `classes` that it is the mean of.
    `map_of_all` ranks bad videos last; what quarantined ones show is not known.
    """
    reasons = table["reason"].to_pylist()
    bad = sum(bool(reason) for reason in reasons)
    numbers: dict[str, float] = {"videos": float(len(table) - bad), "bad_videos": float(bad)}
    numbers["quarantined_videos"] = float(quarantined)
    if is_multi_label(table):
        return numbers | _precision(table, label_sets)
    sets = by_label_set(table, label_sets)
    numbers["unlabelled_videos"] = float(len(table) - bad - min(len(one.rows) for one in sets))
    for one in sets:
        prefix = f"{one.name}_" if len(label_sets) > 1 else ""
        first = one.ranks == 0
        numbers |= _shares(prefix, one.ranks, bad + quarantined)
        numbers[f"{prefix}mean_class"] = mean_class_accuracy(first, one.labels)
    if len(label_sets) > 1:
        numbers |= _shares(f"{JOINT}_", joint_ranks(table, sets), bad + quarantined)
    return numbers


def _precision(table: pa.Table, label_sets: dict[str, tuple[str, ...]]) -> dict[str, float]:
    ranked, everything = ranked_classes(table, label_sets), ranked_classes(table, label_sets, bad=True)
    low, high = map_interval(ranked.scores, ranked.labels)
    shares = ranked.labels.mean(axis=0) if len(ranked.rows) else np.zeros(0)
    return {
        "unlabelled_videos": 0.0,
        "classes": float(ranked.labels.any(axis=0).sum()),
        "map": mean_average_precision(ranked.scores, ranked.labels),
        "map_low": low,
        "map_high": high,
        "map_of_all": mean_average_precision(everything.scores, everything.labels),
        "map_by_chance": float(shares[shares > 0].mean()) if shares.any() else math.nan,
    }


def _shares(prefix: str, places: NDArray[np.int64], wrong: int) -> dict[str, float]:
    hits, total = int((places == 0).sum()), len(places)
    low, high = wilson_interval(hits, total)
    return {
        f"{prefix}top1": hits / max(total, 1),
        f"{prefix}top5": float((places < 5).sum()) / max(total, 1),
        f"{prefix}top1_low": low,
        f"{prefix}top1_high": high,
        f"{prefix}top1_of_all": hits / max(total + wrong, 1),
        f"{prefix}top5_of_all": float((places < 5).sum()) / max(total + wrong, 1),
    }


def joint_ranks(table: pa.Table, sets: list[LabelSetScores]) -> NDArray[np.int64]:
    """Return the rank of the right combination of classes, for videos that have a label in every set."""
    scores = scores_array(table).astype(np.float64)
    ends = np.cumsum([len(one.classes) for one in sets])
    own = [dict(zip(one.rows.tolist(), one.labels.tolist(), strict=True)) for one in sets]
    common = sorted(set.intersection(*(set(labels) for labels in own)))
    places = np.zeros(len(common), dtype=np.int64)
    for at, row in enumerate(common):
        products = np.ones(1)
        label = 0
        for labels, part in zip(own, np.split(scores[row], ends[:-1]), strict=True):
            products = np.outer(products, part).ravel()
            label = label * len(part) + labels[row]
        places[at] = ranks(products[None], np.array([label]))[0]
    return places


def details(table: pa.Table, label_sets: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return, for each label set, bootstrap intervals over the videos, every class, and the confusion matrix; where
    videos have several classes, the average precision of every class."""
    if is_multi_label(table):
        return _details_of_ranked(ranked_classes(table, label_sets))
    found = {}
    for one in by_label_set(table, label_sets):
        first, fifth = one.ranks == 0, one.ranks < 5
        matrix = confusion_matrix(one.predicted, one.labels, len(one.classes))
        counts = matrix.sum(axis=1)
        found[one.name] = {
            "bootstrap_95": {
                "top1": bootstrap_interval(first),
                "top5": bootstrap_interval(fifth),
                "mean_class": mean_class_interval(first, one.labels),
            },
            "per_class": {
                name: {"videos": int(count), "top1": float(right / count) if count else None}
                for name, count, right in zip(one.classes, counts, np.diag(matrix), strict=True)
            },
            "classes": list(one.classes),
            "confusion": matrix.tolist(),
        }
    return found


def _details_of_ranked(ranked: RankedClasses) -> dict[str, Any]:
    values = average_precisions(ranked.scores, ranked.labels)
    each = zip(ranked.classes, ranked.labels.sum(axis=0).tolist(), values.tolist(), strict=True)
    return {
        ranked.name: {
            "per_class": {
                name: {"videos": count, "average_precision": value if count else None} for name, count, value in each
            },
            "classes": list(ranked.classes),
        }
    }


def confused(matrix: NDArray[np.int64], classes: tuple[str, ...], count: int = 5) -> list[tuple[str, str, int]]:
    """Return the most frequent mistakes: class, predicted class, count."""
    wrong = matrix * (1 - np.eye(len(matrix), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = [divmod(int(place), len(matrix)) for place in order]
    return [(classes[i], classes[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]
