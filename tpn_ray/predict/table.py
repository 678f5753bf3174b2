"""From scored blocks to Parquet tables, per video and per view, on disk or in object storage. Runs on the driver."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tpn_ray import storage
from tpn_ray.clips import rows
from tpn_ray.clips.rows import Rows
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import ConfigError, NotFoundError
from tpn_ray.names import label_sets_problem
from tpn_ray.predict.labels import LabelSets
from tpn_ray.predict.predictor import predicted_classes
from tpn_ray.predict.scorer import SCORES, VIEW_SCORES
from tpn_ray.predict.summary import MULTI_LABEL_KEY

LIST = pa.list_(pa.float32())
VIDEOS, METRICS = "videos.parquet", "metrics.json"
LABEL_SETS_KEY = b"tpn_ray.label_sets"
PART_BYTES = 64 * 1024**2
"""View scores per file, in bytes."""


def video_tables(manifest: Manifest, blocks: Iterable[Rows], alphas: int = 1) -> list[pa.Table]:
    """Return, for each alpha, a table with one row per video, in the manifest's order.

    Columns: id, uri, split, labels and their class names, predicted class names, scores, reason, and message. The label
    -1 stands for none; all class names are in the table's metadata. Where videos have several classes, labels hold a 0
    or 1 for each class, and those with a score of a half or more are predicted.
    """
    parts = list(blocks)
    joined = {name: np.concatenate([part[name] for part in parts]) for name in (rows.LABELS, SCORES)}
    why = {name: [value for part in parts for value in part[name].tolist()] for name in (rows.REASON, rows.MESSAGE)}
    about = {LABEL_SETS_KEY: json.dumps(manifest.label_sets)}
    if manifest.multi_label:
        about[MULTI_LABEL_KEY] = "1"
    return [
        pa.table(
            {
                "id": manifest.ids,
                "uri": manifest.uris,
                "split": manifest.splits,
                "labels": joined[rows.LABELS].tolist(),
                "classes": [_names(labels, manifest) for labels in joined[rows.LABELS].tolist()],
                "predicted": [
                    [] if reason else predicted_classes(scores, manifest.label_sets, manifest.multi_label)
                    for scores, reason in zip(joined[SCORES][:, place], why[rows.REASON], strict=True)
                ],
                "scores": pa.array(joined[SCORES][:, place].tolist(), type=LIST),
                "reason": pa.array(why[rows.REASON], type=pa.string()),
                "message": pa.array(why[rows.MESSAGE], type=pa.string()),
            },
            metadata=about,
        )
        for place in range(alphas)
    ]


def _names(labels: Sequence[int], manifest: Manifest) -> list[str | None]:
    if manifest.multi_label:
        return [name for name, has in zip(*manifest.label_sets.values(), labels, strict=True) if has > 0]
    return [classes[i] if i >= 0 else None for i, classes in zip(labels, manifest.label_sets.values(), strict=True)]


class ViewWriter:
    """Writes the scores of every view as they come, to files views/00000.parquet, ... in each folder."""

    def __init__(self, manifest: Manifest, view_names: Sequence[str], folders: Sequence[str]) -> None:
        self.manifest, self.view_names, self.folders = manifest, view_names, folders
        self.waiting: list[Rows] = []
        self.written = 0

    def __call__(self, block: Rows) -> Rows:
        """Keep the block's view scores, and return the block without them."""
        self.waiting.append({name: block[name] for name in (rows.SAMPLE, rows.REASON, VIEW_SCORES)})
        if sum(part[VIEW_SCORES].nbytes for part in self.waiting) >= PART_BYTES:
            self.flush()
        return {name: column for name, column in block.items() if name != VIEW_SCORES}

    def flush(self) -> None:
        """Write the pending scores."""
        if not self.waiting:
            return
        joined = {name: np.concatenate([part[name] for part in self.waiting]) for name in self.waiting[0]}
        usable = joined[rows.REASON] == ""
        samples = joined[rows.SAMPLE][usable]
        for place, folder in enumerate(self.folders):
            scores = joined[VIEW_SCORES][usable, place]
            table = pa.table(
                {
                    "id": [self.manifest.ids[sample] for sample in samples for _ in self.view_names],
                    "view": [name for _ in samples for name in self.view_names],
                    "scores": pa.array(list(scores.reshape(-1, scores.shape[-1])), type=LIST),
                }
            )
            write_scores(table, storage.join(folder, "views", f"{self.written:05d}.parquet"))
        self.written += 1
        self.waiting.clear()


def write_scores(table: pa.Table, uri: str) -> None:
    """Write the table as one Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    storage.write_bytes(uri, buffer.getvalue())


def read_scores(uri: str) -> tuple[pa.Table, LabelSets]:
    """Read a table that jobs/evaluate.py or jobs/train.py wrote, by its URI or its folder's, and its class names."""
    named = uri if uri.endswith(".parquet") else storage.join(uri, VIDEOS)
    try:
        table = pq.read_table(io.BytesIO(storage.read_bytes(storage.absolute(named))))
        label_sets = json.loads(table.schema.metadata[LABEL_SETS_KEY])
    except NotFoundError as error:
        raise ConfigError(
            f"{named} does not exist: give a folder that jobs/evaluate.py wrote, or a file of it"
        ) from error
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{named} holds no scores of jobs/evaluate.py") from error
    if why := label_sets_problem(label_sets):
        raise ConfigError(f"{named} {why}; give scores that jobs/evaluate.py wrote")
    return table, {name: tuple(classes) for name, classes in label_sets.items()}
