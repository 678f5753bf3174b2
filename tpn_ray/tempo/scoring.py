"""Scores what the analyses of tempo need, with Ray Data. Runs on the driver."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from tpn_ray import checkpoint as checkpoints
from tpn_ray import storage
from tpn_ray.clips import rows
from tpn_ray.clips.views import CENTRE, Views, parse_views
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import ConfigError
from tpn_ray.predict import scoring as predict
from tpn_ray.predict.labels import LabelSets, match_classes
from tpn_ray.predict.scorer import VIEW_SCORES
from tpn_ray.predict.sheet import sheet, whole_videos
from tpn_ray.predict.summary import by_label_set
from tpn_ray.predict.table import video_tables, write_scores
from tpn_ray.recipe import Recipe, from_plain, replace_fields
from tpn_ray.resources import Resources
from tpn_ray.tempo import analysis
from tpn_ray.tempo.analysis import Hits, TempoReport
from tpn_ray.tempo.fwhm import Tempo, width

AS_TRAINED = 0
"""Stands in for a stride: the checkpoint's own clips, which may be segments."""


def read_checkpoint(uri: str) -> tuple[Recipe, LabelSets]:
    """Return the recipe and the label sets that a checkpoint was trained with."""
    saved = checkpoints.load(storage.absolute(uri), parts=())
    recipe = from_plain(saved.recipe)
    if recipe.model.multi_label:
        raise ConfigError(
            f"{uri} was trained for several classes a video; the analysis of tempo is of one class a video"
        )
    return recipe, {name: tuple(classes) for name, classes in saved.label_sets.items()}


def check_frames(checkpoint: str) -> None:
    """Raise ConfigError for a checkpoint whose network cannot score single frames."""
    model = read_checkpoint(checkpoint)[0].model
    if model.neck != "none" or model.spec.frames != "apart":
        raise ConfigError(
            f"{checkpoint} is {model.backbone} with neck {model.neck}; single frames are for a tsn backbone without "
            "pyramid, such as the recipe toy_frames"
        )


def measure(checkpoint: str, manifest: Manifest, frames: int, resources: Resources) -> list[Tempo]:
    """Measure the tempo of every labeled video, from `frames` single frames spread evenly over it.

    Only the first of several label sets counts.
    """
    check_frames(checkpoint)
    recipe, label_sets = read_checkpoint(checkpoint)
    if frames < 3:
        raise ConfigError(f"frames={frames} must be at least 3")
    single = replace_fields(recipe, {"clip.frames": 1, "clip.stride_frames": 1, "clip.sampling": "dense"})
    matched = match_classes(manifest, label_sets, checkpoint).manifest
    classes = next(iter(label_sets.values()))
    views, found, uri = Views(clips=frames, crops=CENTRE), list[Tempo](), storage.absolute(checkpoint)
    for block in predict.score(uri, single, matched, views, resources, keep_views=True):
        for row, sample in enumerate(block[rows.SAMPLE].tolist()):
            label = int(matched.labels[sample, 0])
            if label < 0:
                continue
            curve = block[VIEW_SCORES][row, 0, :, label]
            # The first and last samples are the first and last frames, which are a duration minus one frame apart.
            per_sample = float(block[rows.SECONDS][row, 1]) / (frames - 1)
            seconds = width(curve) * per_sample
            found.append(Tempo(matched.ids[sample], classes[label], seconds, float(curve.max())))
    return found


def hits(checkpoints: Sequence[str], manifest: Manifest, views: str, resources: Resources) -> Hits:
    """Return, for each usable labeled video, the share of checkpoints that classify it correctly.

    The checkpoints are of the same network with several seeds. Only the first of several label sets counts.
    """
    each = [_hits(one, manifest, views, resources) for one in checkpoints]
    return {id: sum(one[id] for one in each) / len(each) for id in each[0] if all(id in one for one in each)}


def _hits(checkpoint: str, manifest: Manifest, views: str, resources: Resources) -> dict[str, bool]:
    recipe, label_sets = read_checkpoint(checkpoint)
    matched = match_classes(manifest, label_sets, checkpoint).manifest
    scored = predict.score(storage.absolute(checkpoint), recipe, matched, parse_views(views), resources)
    (table,) = video_tables(matched, scored)
    first = by_label_set(table, label_sets)[0]
    return {matched.ids[row]: bool(place == 0) for row, place in zip(first.rows, first.ranks, strict=True)}


def at_strides(
    checkpoints: Sequence[str], manifest: Manifest, strides: Sequence[int], resources: Resources
) -> dict[int, Hits]:
    """Return `hits` for clips of other strides than the trained one: the same videos, played faster or slower."""
    views = {stride: "1x1" if stride == AS_TRAINED else f"1x1 stride {stride}" for stride in strides}
    return {stride: hits(checkpoints, manifest, one, resources) for stride, one in views.items()}


@dataclass(frozen=True, kw_only=True)
class TempoQuestion:
    """What to analyze."""

    frames: str = ""
    """Checkpoint of a TSN; without one, tempo is not measured."""
    first: tuple[str, ...] = ()
    second: tuple[str, ...] = ()
    """Checkpoints of the two networks, one for each seed; both or none."""
    samples: int = 64
    """Number of single frames from each video."""
    strides: tuple[int, ...] = ()
    """Strides to score both networks at, besides the trained one."""
    classes_per_bin: int = 10


def analyse(
    question: TempoQuestion, manifest: Manifest, true_seconds: dict[str, float], resources: Resources
) -> tuple[list[Tempo], TempoReport]:
    """Run everything that was asked for, and return the tempo of every video and the report."""
    report, tempos = TempoReport(), list[Tempo]()
    if question.frames:
        tempos = measure(question.frames, manifest, question.samples, resources)
        analysis.add_tempo(report, tempos, true_seconds)
    if question.first:
        trained = read_checkpoint(question.first[0])[0].clip.stride_frames
        own = trained if question.strides else AS_TRAINED
        strides = sorted({own, *question.strides})
        at = [at_strides(uris, manifest, strides, resources) for uris in (question.first, question.second)]
        if tempos:
            analysis.add_gain(report, tempos, at[0][own], at[1][own], question.classes_per_bin)
            wrong = [(manifest.ids.index(id), text) for id, text in analysis.missed(tempos, at[1][own])]
            augment = read_checkpoint(question.second[0])[0].augment
            analysis.add_missed(report, sheet(whole_videos(manifest, wrong, augment)))
        if question.strides:
            analysis.add_strides(report, at[0], at[1], trained, ("first", "second"))
    return tempos, report


def write(folder: str, tempos: list[Tempo], report: TempoReport) -> None:
    """Write tempo.parquet, the figures, report.html, and report.json."""
    if tempos:
        table = pa.Table.from_pylist([dataclasses.asdict(one) for one in tempos])
        write_scores(table, storage.join(folder, "tempo.parquet"))
    for name, png in report.pictures.items():
        storage.write_bytes(storage.join(folder, name), png)
    storage.write_bytes(storage.join(folder, "report.html"), report.page.html())
    storage.write_bytes(storage.join(folder, "report.json"), json.dumps(report.numbers, indent=1).encode())
