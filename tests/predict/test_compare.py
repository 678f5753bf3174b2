"""Paired comparisons by hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tpn_ray.errors import ConfigError
from tpn_ray.metrics import mcnemar_exact
from tpn_ray.predict.compare import Named, compare, left_out, verdict

SETS = {"action": ("run", "walk")}


def scores(right: list[bool], labels: list[int], *, ids: list[str] | None = None, bad: tuple[int, ...] = ()) -> Named:
    rows = [[0.9, 0.1] if (label == 0) == hit else [0.1, 0.9] for hit, label in zip(right, labels, strict=True)]
    reasons = ["empty" if i in bad else "" for i in range(len(right))]
    names = ids or [f"v{i:03d}" for i in range(len(right))]
    columns = {"id": names, "scores": rows, "labels": [[label] for label in labels], "reason": reasons}
    return pa.table(columns), SETS


def test_by_hand() -> None:
    labels = [0] * 20 + [1] * 20
    first = scores([False] * 12 + [True] * 8 + [True] * 20, labels)
    second = scores([True] * 10 + [False] * 2 + [True] * 8 + [False] + [True] * 19, labels)
    (found,) = compare(first, second)
    assert (found.videos, found.only_first, found.only_second) == (40, 1, 10)
    assert (found.first, found.second) == (28 / 40, 37 / 40)
    assert found.difference == pytest.approx(9 / 40)
    assert found.p_mcnemar == mcnemar_exact(1, 10) == pytest.approx(2 * (1 + 11) / 2**11)
    assert found.interval[0] < 9 / 40 < found.interval[1]
    assert found.interval[0] > 0
    assert found.p_bootstrap < 0.05
    assert [(one.name, one.videos, round(one.gain, 9)) for one in found.classes] == [
        ("run", 20, 0.5),
        ("walk", 20, -0.05),
    ]
    assert verdict(found) == "the second is better (p = 0.012)"
    (back,) = compare(second, first)
    assert back.difference == pytest.approx(-found.difference)
    assert "the first is better" in verdict(back)


def test_noise_is_not_significant() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(2, size=300).tolist()
    significant = 0
    for _ in range(100):
        first, second = ((random.random(300) < 0.7).tolist() for _ in range(2))
        (found,) = compare(scores(first, labels), scores(second, labels))
        significant += found.p_mcnemar < 0.05
    assert significant <= 12  # 5 are expected of 100


def test_only_videos_that_both_could_use_count() -> None:
    first = scores([True] * 4, [0, 0, 1, 1], ids=["a", "b", "c", "d"], bad=(0,))
    second = scores([False] * 4, [0, 1, 1, 0], ids=["a", "c", "d", "e"])
    (found,) = compare(first, second)
    assert (found.videos, found.only_first) == (2, 2)
    assert left_out(first, second) == [
        "2 videos are in only one of the two and are left out",
        "1 videos could not be used by one or both and are left out",
    ]


def test_what_cannot_be_compared() -> None:
    first = scores([True], [0])
    with pytest.raises(ConfigError, match="no video in common"):
        compare(first, scores([True], [0], ids=["other"]))
    with pytest.raises(ConfigError, match="1 videos have another class .* v000: 'walk' and 'run'"):
        compare(first, scores([True], [1]))
    with pytest.raises(ConfigError, match="the first has scores for action, the second for verb"):
        compare(first, (first[0], {"verb": ("run", "walk")}))


def test_a_notebook_shows_each_class_and_the_verdict() -> None:
    (found,) = compare(scores([True, False] * 4, [0, 1] * 4), scores([True] * 8, [0, 1] * 4))
    shown = found._repr_html_()
    assert "<tr><th>all (action)</th><td>8</td><td>50.0%</td><td>100.0%</td><td>+50.0</td></tr>" in shown
    assert "<tr><th>walk</th><td>4</td><td>0.0%</td><td>100.0%</td><td>+100.0</td></tr>" in shown
    assert "only the first is right on 0 videos, only the second on 4" in shown
    assert verdict(found) in shown
