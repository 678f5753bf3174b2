"""The report from made numbers: what it says is what was put in."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tpn_ray.tempo.analysis import TempoReport, add_gain, add_strides, add_tempo, missed
from tpn_ray.tempo.fwhm import Tempo
from tpn_ray.tempo.page import Page

CLASSES, VIDEOS = 30, 40


@pytest.fixture(scope="module")
def tempos() -> list[Tempo]:
    """Class c varies by c."""
    random = np.random.default_rng(0)
    return [
        Tempo(f"{c:02d}/{v}", f"class {c:02d}", 2 + 0.03 * (c + 1) * random.normal(), 0.9)
        for c in range(CLASSES)
        for v in range(VIDEOS)
    ]


def test_gain_that_grows_with_variance_is_found(tempos: list[Tempo]) -> None:
    random = np.random.default_rng(1)
    first = {one.id: bool(random.random() < 0.5) for one in tempos}
    second = {one.id: bool(random.random() < 0.5 + int(one.id[:2]) / CLASSES / 2.5) for one in tempos}
    report = TempoReport()
    line = add_gain(report, tempos, first, second, per_bin=10)
    assert line.slope_interval[0] > 0
    assert "the gain grows with the variance" in report.page.html().decode()
    assert report.pictures["gain.png"][:4] == b"\x89PNG"
    same = TempoReport()
    assert add_gain(same, tempos, first, first, per_bin=10).slope == pytest.approx(0)
    assert "no growth of the gain with the variance is shown" in same.page.html().decode()


def test_truth_is_compared_where_it_is_known(tempos: list[Tempo]) -> None:
    report = TempoReport()
    unmeasured = [Tempo("x", "class 00", math.nan, 0.1)]
    add_tempo(report, [*tempos, *unmeasured], {one.id: 3 * one.seconds for one in tempos[:100]})
    assert report.numbers["spearman_with_truth"] == "1.000 over 100 videos whose true tempo is known"
    assert report.numbers["tempo"] == "measured in 1200 of 1201 videos with a label"
    assert {"variance.png", "truth.png"} == set(report.pictures)
    unknown = TempoReport()
    add_tempo(unknown, tempos, {})
    assert "truth.png" not in unknown.pictures


def test_strides(tempos: list[Tempo]) -> None:
    steady = {stride: {"a": True, "b": False} for stride in (2, 8, 16)}
    falling = {2: {"a": False, "b": False}, 8: {"a": True, "b": True}, 16: {"a": True, "b": False}}
    report = TempoReport()
    add_strides(report, falling, steady, 8, ("baseline", "TPN"))
    assert report.numbers["strides"] == {"stride": [2, 8, 16], "baseline": [0, 1, 0.5], "TPN": [0.5] * 3}
    assert "moves by 100.0% (baseline) and 0.0% (TPN)" in report.numbers["robustness"]


def test_a_page_is_one_file_and_says_what_it_was_given() -> None:
    page = Page("a < b")
    page.table(("x",), [("<script>",)])
    page.picture(b"png", 'a "picture"')
    made = page.html().decode()
    assert "<script>" not in made
    assert "a &lt; b" in made
    assert "data:image/png;base64,cG5n" in made


def test_missed_videos_are_spread_over_the_tempos() -> None:
    tempos = [Tempo(str(i), "run", 9.0 - i, 0.5) for i in range(10)] + [Tempo("x", "run", math.nan, 0.5)]
    right = {str(i): i % 2 == 0 for i in range(9)} | {"x": False}
    assert [id for id, _ in missed(tempos, right, 2)] == ["7", "1"]
    assert missed(tempos, right, 10)[0] == ("7", "run, 2.00 s wide   7")
    assert missed(tempos, {}, 3) == []
