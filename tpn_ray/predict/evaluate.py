"""Evaluation of a checkpoint on a split of a dataset: scores, numbers, and plots in a folder. Runs on the driver."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from tpn_ray import checkpoint as checkpoints
from tpn_ray import output, storage
from tpn_ray.budget import check_budget
from tpn_ray.clips.views import parse_views
from tpn_ray.datasets.manifest import Manifest, load_manifest
from tpn_ray.meter import ProgressMeter
from tpn_ray.names import file_name
from tpn_ray.predict import plots, scoring
from tpn_ray.predict.labels import Matched, match_classes
from tpn_ray.predict.predictor import EXACT, Alpha, Arithmetic, parse_alphas
from tpn_ray.predict.quarantine import Quarantined, quarantined
from tpn_ray.predict.sheet import sheet, whole_videos
from tpn_ray.predict.summary import (
    by_label_set,
    details,
    is_multi_label,
    ranked_classes,
    scores_array,
    summarise,
)
from tpn_ray.predict.table import METRICS, VIDEOS, ViewWriter, video_tables, write_scores
from tpn_ray.recipe import Recipe, from_plain
from tpn_ray.resources import Resources

MISTAKES = 12
"""Number of videos in the picture of mistakes."""

ALL = "all"
"""Given as the split: every video."""


@dataclass(frozen=True, kw_only=True)
class EvaluationQuestion:
    """What to score, on which data, and how."""

    checkpoint: str
    data: str
    split: str
    views: str
    alphas: tuple[Alpha, ...]
    """Alphas to score; empty: the checkpoint's own."""
    step: int
    recipe: Recipe
    matched: Matched
    quarantined: list[Quarantined]
    arithmetic: Arithmetic = EXACT


@dataclass(frozen=True)
class Result:
    """Result for one alpha."""

    alpha: Alpha
    folder: str
    table: pa.Table
    numbers: dict[str, float]

    def _repr_html_(self) -> str:
        """Show the numbers, and the pictures in the folder, in a notebook."""
        counts = ("videos", "bad_videos", "quarantined_videos", "unlabelled_videos", "classes")
        rows = [(name, f"{value:.0f}" if name in counts else f"{value:.1%}") for name, value in self.numbers.items()]
        files = [storage.name(file.uri) for file in storage.list_files(self.folder, suffixes=(".png",))]
        pictures = [
            output.html_picture(storage.read_bytes(storage.join(self.folder, name)), name) for name in sorted(files)
        ]
        return "".join([output.html_table(rows), *pictures])


def ask(
    checkpoint: str, data: str, split: str, views: str, alphas: Sequence[str], arithmetic: Arithmetic = EXACT
) -> EvaluationQuestion:
    """Read the inputs, and refuse what cannot be scored, before asking a cluster for anything."""
    parse_views(views)
    uri = checkpoints.find(checkpoint)
    saved = checkpoints.load(uri, parts=())
    recipe = from_plain(saved.recipe)
    manifest = load_manifest(data, for_training=False)
    chosen = manifest if split == ALL else manifest.select(split)
    chosen.showing(recipe.clip.modality)
    return EvaluationQuestion(
        checkpoint=uri,
        data=storage.absolute(data),
        split=split,
        views=views,
        alphas=tuple(parse_alphas(alphas, recipe)),
        step=saved.step,
        recipe=recipe,
        matched=match_classes(
            chosen,
            {name: tuple(classes) for name, classes in saved.label_sets.items()},
            uri,
            recipe.model.multi_label,
        ),
        quarantined=quarantined(data, set(manifest.splits) if split == ALL else {split}),
        arithmetic=arithmetic,
    )


def evaluate(question: EvaluationQuestion, resources: Resources, folder: str) -> list[Result]:
    """Score every video; write videos.parquet, views/, metrics.json, and plots to `folder`, or with several alphas, to
    one folder per alpha below it."""
    manifest, views = question.matched.manifest, parse_views(question.views)
    alphas = question.alphas or (scoring.TRAINED,)
    folders = [storage.join(folder, alpha_name(alpha)) if alpha else folder for alpha in alphas]
    writer = ViewWriter(manifest, views.names, folders)
    blocks = scoring.score(
        question.checkpoint,
        question.recipe,
        manifest,
        views,
        resources,
        alphas=alphas,
        keep_views=True,
        arithmetic=question.arithmetic,
        on_progress=ProgressMeter("videos scored"),
    )
    tables = video_tables(manifest, map(writer, blocks), len(alphas))
    writer.flush()
    results = []
    for alpha, place, table in zip(alphas, folders, tables, strict=True):
        numbers = summarise(table, manifest.label_sets, len(question.quarantined))
        behind = details(table, manifest.label_sets)
        write_scores(table, storage.join(place, VIDEOS))
        about = {**_about(question, alpha), "numbers": numbers, "label_sets": behind, **_not_counted(question, table)}
        storage.write_bytes(storage.join(place, METRICS), json.dumps(_plain(about), indent=1).encode())
        for name, picture in _pictures(behind).items():
            storage.write_bytes(storage.join(place, name), picture)
        strips = whole_videos(manifest, mistakes(table, manifest), question.recipe.augment)
        storage.write_bytes(storage.join(place, "mistakes.png"), sheet(strips))
        results.append(Result(alpha, place, table, numbers))
    return results


def _pictures(behind: dict[str, Any]) -> dict[str, bytes]:
    """Draw every class, and the confusion matrix, which there is none of where videos have several classes."""
    made = {}
    for name, about in behind.items():
        if "confusion" in about:
            matrix = np.array(about["confusion"])
            made[f"confusion_{file_name(name)}.png"] = plots.confusion(matrix, about["classes"])
        made[f"classes_{file_name(name)}.png"] = plots.per_class(about["per_class"])
    return made


def mistakes(table: pa.Table, manifest: Manifest, count: int = MISTAKES) -> list[tuple[int, str]]:
    """Return (row, text) of the videos in which a wrong class has the highest score, the most confident first.

    With several label sets, only the first one counts. Where videos have several classes, it is those with the most
    confident wrong class, or the least confident right one, whichever is further off.
    """
    if is_multi_label(table):
        return _furthest_off(table, manifest, count)
    first = by_label_set(table, manifest.label_sets)[0]
    wrong = np.flatnonzero(first.ranks > 0)
    sure = scores_array(table)[first.rows[wrong], first.predicted[wrong]]
    found = []
    for place in np.argsort(-sure, kind="stable")[:count].tolist():
        one = wrong[place]
        said, own = first.classes[first.predicted[one]], first.classes[first.labels[one]]
        row = int(first.rows[one])
        found.append((row, f"{own}, taken for {said} ({sure[place]:.2f})   {manifest.ids[row]}"))
    return found


def _furthest_off(table: pa.Table, manifest: Manifest, count: int) -> list[tuple[int, str]]:
    ranked = ranked_classes(table, manifest.label_sets)
    errors = np.abs(ranked.labels - ranked.scores)
    worst = errors.argmax(axis=1) if len(errors) else np.zeros(0, dtype=np.int64)
    far = errors[np.arange(len(errors)), worst]
    found = []
    for place in np.argsort(-far, kind="stable")[:count].tolist():
        one, row = worst[place], int(ranked.rows[place])
        if far[place] < 0.5:
            break
        score = f"{ranked.classes[one]} ({ranked.scores[place, one]:.2f})"
        said = f"{score} missed" if ranked.labels[place, one] else f"not {score}"
        found.append((row, f"{said}; is {', '.join(manifest.classes_of(row)) or 'none'}   {manifest.ids[row]}"))
    return found


def alpha_name(alpha: Alpha) -> str:
    """Return the folder name for an alpha."""
    return "alpha_" + "_".join(map(str, alpha))


def default_folder(checkpoint: str, split: str, views: str) -> str:
    """Return a folder beside the checkpoint, named after what was scored."""
    return f"{storage.absolute(checkpoint)}.{split}.{views.replace(' ', '_')}"


def _about(question: EvaluationQuestion, alpha: Alpha) -> dict[str, Any]:
    return {
        "checkpoint": question.checkpoint,
        "step": question.step,
        "data": question.data,
        "dataset_version": question.matched.manifest.version,
        "split": question.split,
        "views": question.views,
        "alpha": alpha or question.recipe.model.alpha,
        **dataclasses.asdict(question.arithmetic),
    }


def _bad(table: pa.Table) -> list[tuple[str, str, str]]:
    columns = (table[name].to_pylist() for name in ("uri", "reason", "message"))
    return [row for row in zip(*columns, strict=True) if row[1]]


def _not_counted(question: EvaluationQuestion, table: pa.Table) -> dict[str, Any]:
    """List every video behind the difference between the numbers with and without it."""
    names = ("uri", "reason", "message")
    return {
        "bad": [dict(zip(names, row, strict=True)) for row in _bad(table)],
        "quarantined": [dict(zip(names, row, strict=True)) for row in question.quarantined],
        "unlabelled": [question.matched.manifest.uris[row] for row in question.matched.unlabelled],
        "classes_not_in_checkpoint": question.matched.foreign,
    }


def _plain(value: Any) -> Any:
    """Replace nan, which JSON does not have."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def refuse_budget(question: EvaluationQuestion, results: list[Result], max_bad: Fraction) -> None:
    """Raise BudgetError if more of the videos were bad than is allowed. All results are already written."""
    bad, written = _bad(results[0].table), storage.join(results[0].folder, METRICS)
    check_budget(bad, len(question.matched.manifest), max_bad, bad, f"all are listed in {written}")
