"""Videos with several classes: what is made of their scores, by hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tpn_ray.clips import rows
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import CheckpointError, ConfigError
from tpn_ray.predict.compare import compare, verdict
from tpn_ray.predict.evaluate import mistakes
from tpn_ray.predict.fusion import fuse
from tpn_ray.predict.labels import match_classes, warning
from tpn_ray.predict.scorer import SCORES
from tpn_ray.predict.summary import by_label_set, details, summarise
from tpn_ray.predict.table import video_tables

SETS = {"action": ("run", "jump", "swim")}
LABELS = [[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]]
GOOD = [[0.9, 0.1, 0.2], [0.2, 0.8, 0.1], [0.7, 0.6, 0.1], [0.1, 0.2, 0.3]]
POOR = [[0.2, 0.9, 0.2], [0.9, 0.1, 0.1], [0.7, 0.6, 0.1], [0.1, 0.2, 0.3]]


def manifest(labels: list[list[int]] = LABELS) -> Manifest:
    count = len(labels)
    ids = [f"v{i}" for i in range(count)]
    return Manifest(
        ids=ids,
        uris=[f"/videos/{id}" for id in ids],
        labels=np.array(labels, dtype=np.int64),
        splits=["val"] * count,
        label_sets=SETS,
        version="0" * 16,
        sizes_bytes=np.ones(count, dtype=np.int64),
        multi_label=True,
    )


def scored(scores: list[list[float]], labels: list[list[int]] = LABELS, bad: tuple[int, ...] = ()) -> pa.Table:
    reasons = np.array(["empty" if i in bad else "" for i in range(len(scores))])
    block = {
        rows.LABELS: np.array(labels, dtype=np.int64),
        SCORES: np.array(scores, dtype=np.float32)[:, None],
        rows.REASON: reasons,
        rows.MESSAGE: reasons,
    }
    (table,) = video_tables(manifest(labels), [block])
    return table


def test_map_is_the_mean_over_the_classes_that_occur() -> None:
    table = scored(POOR)
    numbers = summarise(table, SETS)
    # run: right at ranks 2 and 3 of 0.9 0.7 0.2; jump: at ranks 2 and 4 of 0.9 0.6 0.2 0.1.
    assert numbers["map"] == pytest.approx(((1 / 2 + 2 / 3) / 2 + (1 / 2 + 2 / 4) / 2) / 2)
    assert (numbers["videos"], numbers["classes"], numbers["map_by_chance"]) == (4, 2, 0.5)
    assert numbers["map_low"] <= numbers["map"] <= numbers["map_high"]
    assert not [name for name in numbers if "top" in name]
    assert table["classes"].to_pylist() == [["run"], ["jump"], ["run", "jump"], []]
    assert table["predicted"].to_pylist() == [["jump"], ["run"], ["run", "jump"], []]
    about = details(table, SETS)["action"]
    assert about["per_class"]["swim"] == {"videos": 0, "average_precision": None}
    assert about["per_class"]["jump"] == {"videos": 2, "average_precision": 0.5}
    assert "confusion" not in about
    with pytest.raises(ConfigError, match="no top-1 to compute; mAP is their score"):
        by_label_set(table, SETS)


def test_bad_videos_are_ranked_last_among_all() -> None:
    numbers = summarise(scored(GOOD, bad=(0,)), SETS, quarantined=2)
    assert (numbers["map"], numbers["bad_videos"], numbers["quarantined_videos"]) == (1.0, 1, 2)
    # run: at ranks 1 and 4.
    assert numbers["map_of_all"] == pytest.approx(((1 + 2 / 4) / 2 + 1) / 2)


def test_a_comparison_is_of_map() -> None:
    many = LABELS * 10
    first, second = scored(POOR * 10, many), scored(GOOD * 10, many)
    (found,) = compare((first, SETS), (second, SETS))
    assert (found.score, found.second, found.only_first, found.p_mcnemar) == ("mAP", 1.0, None, None)
    assert found.difference > found.interval[0] > 0
    assert verdict(found).startswith("the second is better (p = ")
    assert [(one.name, one.videos) for one in found.classes] == [("jump", 20), ("run", 20)]
    assert "only the first" not in found._repr_html_()
    (same,) = compare((first, SETS), (first, SETS))
    assert (same.difference, same.interval, same.p) == (0.0, (0.0, 0.0), 1.0)
    one_each = first.replace_schema_metadata({})
    with pytest.raises(ConfigError, match="one of the two has several classes"):
        compare((first, SETS), (one_each, SETS))
    fused, _ = fuse((first, SETS), (second, SETS), 1.0)
    assert summarise(fused, SETS)["map"] > summarise(first, SETS)["map"]


def test_mistakes_name_what_is_missed_and_what_is_not_there() -> None:
    assert mistakes(scored(POOR), manifest()) == [
        (0, "not jump (0.90); is run   v0"),
        (1, "not run (0.90); is jump   v1"),
    ]
    assert mistakes(scored(GOOD), manifest()) == []
    missed = scored([[0.2, 0.1, 0.1]], [[1, 0, 0]])
    assert mistakes(missed, manifest([[1, 0, 0]])) == [(0, "run (0.20) missed; is run   v0")]


def test_classes_are_matched_by_name() -> None:
    trained = {"action": ("swim", "fly", "run")}
    matched = match_classes(manifest(), trained, "c", multi_label=True)
    assert matched.manifest.labels.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert warning(matched) == "classes that the checkpoint does not have are not counted: jump"
    with pytest.raises(CheckpointError, match="trained for one class a video, the dataset has several classes a video"):
        match_classes(manifest(), trained, "c")
    with pytest.raises(CheckpointError, match="no video can be counted"):
        match_classes(manifest(), {"action": ("fly",)}, "c", multi_label=True)
