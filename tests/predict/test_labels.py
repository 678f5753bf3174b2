"""Classes are matched by name, whatever their order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tpn_ray.datasets.entries import Entry
from tpn_ray.datasets.manifest import Manifest, build
from tpn_ray.errors import CheckpointError
from tpn_ray.predict.labels import match_classes, unlabelled, warning


def dataset(*classes: str) -> Manifest:
    entries = [Entry(f"{name}/{i}.mp4", f"/v/{name}/{i}.mp4", (name,), "train") for name in classes for i in range(2)]
    return build(entries, {entry.uri: 1 for entry in entries}, source="/v")


def test_the_same_classes_in_another_order_get_the_checkpoints_numbers() -> None:
    matched = match_classes(dataset("jump", "run", "walk"), {"action": ("walk", "run", "jump")}, "C")
    assert matched.manifest.labels[:, 0].tolist() == [2, 2, 1, 1, 0, 0]
    assert matched.manifest.label_sets == {"action": ("walk", "run", "jump")}
    assert warning(matched) == ""


def test_foreign_classes_are_listed_and_not_counted() -> None:
    matched = match_classes(dataset("jump", "swim"), {"action": ("run", "jump")}, "C")
    assert matched.manifest.labels[:, 0].tolist() == [1, 1, -1, -1]
    assert matched.unlabelled == [2, 3]
    assert "2 of 4 videos have no label to count by" in warning(matched)
    assert "swim" in warning(matched)


def test_videos_without_a_label_are_not_counted_either() -> None:
    some = dataset("jump", "run")
    some = replace(some, labels=np.array([[0], [-1], [1], [-1]]))
    matched = match_classes(some, {"action": ("run", "jump")}, "C")
    assert matched.manifest.labels[:, 0].tolist() == [1, -1, 0, -1]
    assert matched.foreign == {}


def test_nothing_in_common_is_refused_with_both_sides() -> None:
    with pytest.raises(CheckpointError, match=r"trained on run, sit \(action\), the dataset has jump: no video"):
        match_classes(dataset("jump"), {"action": ("run", "sit")}, "C")
    with pytest.raises(CheckpointError, match="C predicts verb, noun, the dataset has action"):
        match_classes(dataset("jump"), {"verb": ("a",), "noun": ("b",)}, "C")


def test_a_prediction_needs_no_labels() -> None:
    asked = unlabelled(dataset("jump"), {"verb": ("a",), "noun": ("b", "c")})
    assert asked.labels.tolist() == [[-1, -1], [-1, -1]]
