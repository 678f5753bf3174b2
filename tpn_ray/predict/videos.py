"""The videos for which a prediction is requested, without labels. Runs on the driver."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

from tpn_ray import storage
from tpn_ray.datasets import shards
from tpn_ray.datasets.manifest import Manifest, load_manifest
from tpn_ray.datasets.video_lists import SUFFIXES
from tpn_ray.errors import ManifestError
from tpn_ray.predict.labels import LabelSets, unlabelled

LISTS = (".txt", ".csv")
"""Suffixes of lists: one URI per line, or the column `uri` of a table; absolute, or relative to the list."""


def find_videos(named: Sequence[str], trained: LabelSets) -> Manifest:
    """Return the videos of files, lists, and folders (or prefixes), or of one prepared dataset.

    Raises ManifestError or StorageError. A named file that does not exist is no error here: it becomes a row that says
    so.
    """
    if len(named) == 1 and _is_prepared(named[0]):
        return unlabelled(load_manifest(named[0], for_training=False), trained)
    uris = list(dict.fromkeys(uri for one in named for uri in _expand(one)))
    if not uris:
        raise ManifestError(f"{', '.join(named)}: no videos; their names end in {' '.join(SUFFIXES)}")
    manifest = Manifest(
        ids=uris,
        uris=uris,
        labels=np.zeros((len(uris), 0), dtype=np.int64),
        splits=["test"] * len(uris),
        label_sets={},
        version="",
        sizes_bytes=np.full(len(uris), -1, dtype=np.int64),
    )
    return unlabelled(manifest, trained)


def _is_prepared(named: str) -> bool:
    return not named.lower().endswith((*SUFFIXES, *LISTS)) and storage.exists(
        storage.join(storage.absolute(named), shards.DATASET)
    )


def _expand(named: str) -> list[str]:
    uri = storage.absolute(named)
    if uri.lower().endswith(SUFFIXES):
        return [uri]
    if uri.lower().endswith(LISTS):
        return _listed(uri)
    files = storage.list_files(uri, suffixes=SUFFIXES)
    return [file.uri for file in files if not storage.name(file.uri).startswith(".")]


def _listed(uri: str) -> list[str]:
    text = storage.read_bytes(uri).decode("utf-8-sig", errors="replace")
    if uri.lower().endswith(".csv"):
        table = csv.DictReader(io.StringIO(text))
        if "uri" not in (table.fieldnames or []):
            raise ManifestError(f"{uri} has no column uri; its first line is {','.join(table.fieldnames or [])!r}")
        lines = [row["uri"] or "" for row in table]
    else:
        lines = text.splitlines()
    folder = storage.parent(uri)
    named = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return [storage.absolute(one if storage.is_absolute(one) else f"{folder}/{one}") for one in named]
