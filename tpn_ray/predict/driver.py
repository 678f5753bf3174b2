"""Scores of every video of a split, as a table in Parquet and as numbers. Runs on the driver."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from tpn_ray import checkpoint as checkpoints
from tpn_ray import storage
from tpn_ray.clips.manifest import Manifest
from tpn_ray.data import driver as data
from tpn_ray.data import rows
from tpn_ray.data.views import Views
from tpn_ray.data.worker import ClipSource
from tpn_ray.errors import CheckpointError
from tpn_ray.metrics import mean_class_accuracy, wilson_interval
from tpn_ray.predict.worker import SCORES, Scorer
from tpn_ray.train.recipe import from_plain


@dataclass(frozen=True, kw_only=True)
class Scorers:
    """What scoring takes of the cluster."""

    actors: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    decode: data.DecodeResources = field(default_factory=data.DecodeResources)


def score_videos(checkpoint_uri: str, manifest: Manifest, views: Views, scorers: Scorers) -> pa.Table:
    """One row per video, in the manifest's order: id, uri, split, labels, scores, reason, message.

    Raises CheckpointError where the checkpoint was trained on other classes.
    """
    recipe = _check_classes(checkpoint_uri, manifest)
    source = ray.put(ClipSource(manifest=manifest, clip=recipe.clip, augment=recipe.augment, seed=recipe.loop.seed))
    video_bytes = views.count * recipe.clip.frames * views.side_px(recipe.augment) ** 2 * 3
    scored = data.video_views(source, views, len(manifest), video_bytes, scorers.decode).map_batches(
        Scorer,
        fn_constructor_args=(checkpoint_uri, max(1, int(scorers.cpus))),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=scorers.actors),
        num_cpus=scorers.cpus,
        num_gpus=scorers.gpus or None,
    )
    return _table(manifest, list(scored.iter_batches(batch_size=None)))


def _check_classes(checkpoint_uri: str, manifest: Manifest) -> Any:
    saved = checkpoints.load(checkpoint_uri)
    theirs = {name: list(classes) for name, classes in manifest.label_sets.items()}
    if saved.label_sets != theirs:
        raise CheckpointError(
            f"{checkpoint_uri} was trained on {_short(saved.label_sets)}, the dataset has {_short(theirs)}; "
            "its scores would name the wrong classes. Give the dataset it was trained on"
        )
    return from_plain(saved.recipe)


def _short(label_sets: dict[str, list[str]]) -> str:
    return "; ".join(
        f"{name}: {len(classes)} classes ({', '.join(classes[:3])}, ...)" for name, classes in label_sets.items()
    )


def _table(manifest: Manifest, blocks: list[Any]) -> pa.Table:
    joined = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    place = np.argsort(joined[rows.SAMPLE], kind="stable")
    if not np.array_equal(joined[rows.SAMPLE][place], np.arange(len(manifest))):
        raise AssertionError("every video must be scored exactly once")
    return pa.table(
        {
            "id": manifest.ids,
            "uri": manifest.uris,
            "split": manifest.splits,
            "labels": joined[rows.LABELS][place].tolist(),
            "scores": pa.array(joined[SCORES][place].tolist(), type=pa.list_(pa.float32())),
            "reason": joined[rows.REASON][place].tolist(),
            "message": joined[rows.MESSAGE][place].tolist(),
        }
    )


def summarise(table: pa.Table, label_sets: dict[str, tuple[str, ...]]) -> dict[str, float]:
    """Top-1, top-5 and mean class accuracy for each label set, over the videos that could be used.

    `top1_of_all` counts the bad videos as wrong. Keys carry the label set's name where there are several.
    """
    usable = np.array([not reason for reason in table["reason"].to_pylist()], dtype=bool)
    labels = np.array(table["labels"].to_pylist(), dtype=np.int64)[usable]
    scores = np.array(table["scores"].to_pylist(), dtype=np.float32)[usable]
    numbers: dict[str, float] = {"videos": float(usable.sum()), "bad_videos": float((~usable).sum())}
    start = 0
    for i, (name, classes) in enumerate(label_sets.items()):
        part, start = scores[:, start : start + len(classes)], start + len(classes)
        prefix = f"{name}_" if len(label_sets) > 1 else ""
        order = np.argsort(-part, axis=1, kind="stable")
        first = order[:, 0] == labels[:, i]
        numbers[f"{prefix}top1"] = float(first.mean()) if len(first) else 0.0
        numbers[f"{prefix}top5"] = (
            float((order[:, :5] == labels[:, i : i + 1]).any(axis=1).mean()) if len(first) else 0.0
        )
        numbers[f"{prefix}mean_class"] = mean_class_accuracy(first, labels[:, i])
        numbers[f"{prefix}top1_low"], numbers[f"{prefix}top1_high"] = wilson_interval(int(first.sum()), len(first))
        numbers[f"{prefix}top1_of_all"] = float(first.sum()) / max(len(usable), 1)
    return numbers


def write_scores(table: pa.Table, uri: str) -> None:
    """The table as one Parquet file, on disk or in object storage."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    storage.write_bytes(uri, buffer.getvalue())
