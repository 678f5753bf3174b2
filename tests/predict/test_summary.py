from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from tpn_ray.predict.summary import confused, details, summarise

ACTION = {"action": ("a", "b", "c")}


def table(scores: list[list[float]], labels: list[list[int]], reasons: list[str]) -> pa.Table:
    return pa.table({"scores": scores, "labels": labels, "reason": reasons})


FOUR = table(
    [[0.7, 0.2, 0.1], [0.1, 0.5, 0.4], [0.3, 0.3, 0.4], [0.0, 0.0, 0.0]], [[0], [2], [2], [1]], ["", "", "", "empty"]
)


def test_numbers_by_hand() -> None:
    numbers = summarise(FOUR, ACTION)
    assert numbers["videos"] == 3
    assert numbers["bad_videos"] == 1
    assert numbers["top1"] == pytest.approx(2 / 3)
    assert numbers["top5"] == 1
    assert numbers["mean_class"] == pytest.approx(0.75)
    assert numbers["top1_of_all"] == 0.5
    assert numbers["top1_low"] < 2 / 3 < numbers["top1_high"]


def test_quarantined_videos_count_as_wrong_among_all() -> None:
    numbers = summarise(FOUR, ACTION, quarantined=4)
    assert (numbers["quarantined_videos"], numbers["top1_of_all"]) == (4, 0.25)
    assert numbers["top1"] == pytest.approx(2 / 3)


def test_videos_without_label_count_nowhere() -> None:
    numbers = summarise(table([[0.7, 0.2, 0.1]] * 3, [[0], [1], [-1]], ["", "", ""]), ACTION)
    assert (numbers["top1"], numbers["top1_of_all"], numbers["unlabelled_videos"]) == (0.5, 0.5, 1)


def test_verb_noun_and_both_at_once() -> None:
    sets = {"verb": ("a", "b"), "noun": ("c", "d", "e")}
    scores = [[0.9, 0.1, 0.2, 0.8, 0.0], [0.6, 0.4, 0.7, 0.2, 0.1]]
    numbers = summarise(table(scores, [[0, 1], [1, 0]], ["", ""]), sets)
    assert (numbers["verb_top1"], numbers["noun_top1"], numbers["action_top1"]) == (0.5, 1.0, 0.5)
    # Of the second video the products are .42 .12 .06 .28 .08 .04: the right one, b and c, is the second.
    assert numbers["action_top5"] == 1.0
    assert numbers["action_top1_of_all"] == 0.5


def test_details_by_hand() -> None:
    found = details(FOUR, ACTION)["action"]
    assert found["confusion"] == [[1, 0, 0], [0, 0, 0], [0, 1, 1]]
    assert found["per_class"]["c"] == {"videos": 2, "top1": 0.5}
    assert found["per_class"]["b"] == {"videos": 0, "top1": None}
    low, high = found["bootstrap_95"]["top1"]
    assert low < 2 / 3 < high
    assert confused(np.array(found["confusion"]), ACTION["action"]) == [("c", "b", 1)]


def test_nothing_usable() -> None:
    numbers = summarise(table([[0.0, 0.0, 0.0]], [[0]], ["empty"]), ACTION)
    assert (numbers["videos"], numbers["top1"], numbers["top1_of_all"]) == (0, 0, 0)
    assert math.isnan(details(table([[0.0, 0.0, 0.0]], [[0]], ["empty"]), ACTION)["action"]["bootstrap_95"]["top1"][0])
