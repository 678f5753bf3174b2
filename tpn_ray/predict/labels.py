"""A dataset's labels in a checkpoint's class numbering. Pure; runs anywhere.

Classes are matched by name, so a dataset may hold them in another order, or hold only some of them. A video whose class
the checkpoint does not have is scored and listed, but is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import CheckpointError

NO_LABEL = -1
"""Replaces a class number if the video has no label, or one that the checkpoint does not know."""

SHOWN = 5

LabelSets = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Matched:
    """A dataset in the checkpoint's numbering."""

    manifest: Manifest
    foreign: dict[str, list[str]]
    """Classes of these videos that the checkpoint does not have, by label set."""

    @property
    def unlabelled(self) -> list[int]:
        """Rows that cannot be counted."""
        return np.flatnonzero((self.manifest.labels == NO_LABEL).any(axis=1)).tolist()


def match_classes(manifest: Manifest, trained: LabelSets, checkpoint_uri: str) -> Matched:
    """Return the manifest with the labels and class names of the checkpoint.

    Raises CheckpointError if the label sets differ, or if nothing in common is left to count.
    """
    if list(manifest.label_sets) != list(trained):
        raise CheckpointError(
            f"{checkpoint_uri} predicts {_and(list(trained))}, the dataset has {_and(list(manifest.label_sets))}; "
            "give a dataset with the same label sets"
        )
    numbers = np.full_like(manifest.labels, NO_LABEL)
    foreign = dict[str, list[str]]()
    for column, (name, classes) in enumerate(manifest.label_sets.items()):
        place = {known: i for i, known in enumerate(trained[name])}
        translated = np.array([*(place.get(known, NO_LABEL) for known in classes), NO_LABEL], dtype=np.int64)
        numbers[:, column] = translated[manifest.labels[:, column]]  # a label of -1 takes the last entry
        used = {classes[label] for label in manifest.labels[:, column].tolist() if label >= 0}
        foreign[name] = sorted(used - place.keys())
        if not (numbers[:, column] >= 0).any():
            raise CheckpointError(
                f"{checkpoint_uri} was trained on {_and(list(trained[name]))} ({name}), the dataset has "
                f"{_and(foreign[name]) if foreign[name] else 'no labels'}: no video can be counted. Give "
                "the dataset it was trained on, or rename the classes"
            )
    return Matched(replace(manifest, labels=numbers, label_sets=trained), {n: f for n, f in foreign.items() if f})


def unlabelled(manifest: Manifest, trained: LabelSets) -> Manifest:
    """Return the same videos for a prediction: with the checkpoint's classes, and without labels."""
    labels = np.full((len(manifest), len(trained)), NO_LABEL, dtype=np.int64)
    return replace(manifest, labels=labels, label_sets=trained)


def warning(matched: Matched) -> str:
    """Describe the videos that are not counted; empty if all are."""
    rows = matched.unlabelled
    if not rows:
        return ""
    classes = "; ".join(f"{name}: {_and(names)}" for name, names in matched.foreign.items())
    said = f" (classes that the checkpoint does not have: {classes})" if classes else ""
    return f"{len(rows)} of {len(matched.manifest)} videos have no label to count by{said}; they are scored and listed"


def _and(names: list[str]) -> str:
    if len(names) <= SHOWN:
        return ", ".join(names)
    return f"{len(names)} classes ({', '.join(names[:SHOWN])}, ...)"
