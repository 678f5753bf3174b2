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

SEVERAL = {False: "one class a video", True: "several classes a video"}


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


def match_classes(manifest: Manifest, trained: LabelSets, checkpoint_uri: str, multi_label: bool = False) -> Matched:
    """Return the manifest with the labels and class names of the checkpoint, for several classes a video or
    not.

    Raises CheckpointError if the label sets differ, or if nothing in common is left to count.
    """
    if manifest.multi_label != multi_label:
        raise CheckpointError(
            f"{checkpoint_uri} was trained for {SEVERAL[multi_label]}, the dataset has "
            f"{SEVERAL[manifest.multi_label]}; give a dataset of the same kind"
        )
    if list(manifest.label_sets) != list(trained):
        raise CheckpointError(
            f"{checkpoint_uri} predicts {_and(list(trained))}, the dataset has {_and(list(manifest.label_sets))}; "
            "give a dataset with the same label sets"
        )
    if multi_label:
        return _match_marks(manifest, trained, checkpoint_uri)
    numbers = np.full_like(manifest.labels, NO_LABEL)
    foreign = dict[str, list[str]]()
    for column, (name, classes) in enumerate(manifest.label_sets.items()):
        place = {known: i for i, known in enumerate(trained[name])}
        translated = np.array([*(place.get(known, NO_LABEL) for known in classes), NO_LABEL], dtype=np.int64)
        numbers[:, column] = translated[manifest.labels[:, column]]  # a label of -1 takes the last entry
        used = {classes[label] for label in manifest.labels[:, column].tolist() if label >= 0}
        foreign[name] = sorted(used - place.keys())
        if not (numbers[:, column] >= 0).any():
            raise _nothing_to_count(checkpoint_uri, name, trained, foreign)
    return Matched(replace(manifest, labels=numbers, label_sets=trained), {n: f for n, f in foreign.items() if f})


def _match_marks(manifest: Manifest, trained: LabelSets, checkpoint_uri: str) -> Matched:
    """Do the same for several classes a video. A class that only the checkpoint has is one that no video here has."""
    ((name, classes),) = manifest.label_sets.items()
    place = {known: i for i, known in enumerate(trained[name])}
    marks = np.zeros((len(manifest), len(place)), dtype=np.int64)
    both = [i for i, known in enumerate(classes) if known in place]
    marks[:, [place[classes[i]] for i in both]] = manifest.labels[:, both]
    used = {classes[i] for i in np.flatnonzero(manifest.labels.sum(axis=0))}
    foreign = {name: sorted(used - place.keys())}
    if not marks.any():
        raise _nothing_to_count(checkpoint_uri, name, trained, foreign)
    return Matched(replace(manifest, labels=marks, label_sets=trained), {n: f for n, f in foreign.items() if f})


def _nothing_to_count(
    checkpoint_uri: str, name: str, trained: LabelSets, foreign: dict[str, list[str]]
) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint_uri} was trained on {_and(list(trained[name]))} ({name}), the dataset has "
        f"{_and(foreign[name]) if foreign[name] else 'no labels'}: no video can be counted. Give "
        "the dataset it was trained on, or rename the classes"
    )


def unlabelled(manifest: Manifest, trained: LabelSets) -> Manifest:
    """Return the same videos for a prediction: with the checkpoint's classes, and without labels."""
    labels = np.full((len(manifest), len(trained)), NO_LABEL, dtype=np.int64)
    return replace(manifest, labels=labels, label_sets=trained)


def warning(matched: Matched) -> str:
    """Describe the videos that are not counted; empty if all are."""
    rows = matched.unlabelled
    if matched.manifest.multi_label and matched.foreign:
        ((_, names),) = matched.foreign.items()
        return f"classes that the checkpoint does not have are not counted: {_and(names)}"
    if not rows:
        return ""
    classes = "; ".join(f"{name}: {_and(names)}" for name, names in matched.foreign.items())
    said = f" (classes that the checkpoint does not have: {classes})" if classes else ""
    return f"{len(rows)} of {len(matched.manifest)} videos have no label to count by{said}; they are scored and listed"


def _and(names: list[str]) -> str:
    if len(names) <= SHOWN:
        return ", ".join(names)
    return f"{len(names)} classes ({', '.join(names[:SHOWN])}, ...)"
