from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tpn_ray import storage
from tpn_ray.predict.driver import summarise, write_scores


def table(scores: list[list[float]], labels: list[list[int]], reasons: list[str]) -> pa.Table:
    return pa.table({"scores": scores, "labels": labels, "reason": reasons})


def test_numbers_by_hand() -> None:
    scores = [[0.7, 0.2, 0.1], [0.1, 0.5, 0.4], [0.3, 0.3, 0.4], [0.0, 0.0, 0.0]]
    numbers = summarise(table(scores, [[0], [2], [2], [1]], ["", "", "", "empty"]), {"action": ("a", "b", "c")})
    assert numbers["videos"] == 3
    assert numbers["bad_videos"] == 1
    assert numbers["top1"] == pytest.approx(2 / 3)
    assert numbers["top5"] == 1
    assert numbers["mean_class"] == pytest.approx(0.75)
    assert numbers["top1_of_all"] == 0.5
    assert numbers["top1_low"] < 2 / 3 < numbers["top1_high"]


def test_each_label_set_has_its_own_numbers() -> None:
    scores = [[0.9, 0.1, 0.2, 0.8], [0.9, 0.1, 0.7, 0.3]]
    numbers = summarise(table(scores, [[0, 1], [1, 0]], ["", ""]), {"verb": ("a", "b"), "noun": ("c", "d")})
    assert (numbers["verb_top1"], numbers["noun_top1"]) == (0.5, 1.0)


def test_written_scores_read_back(tmp_path: Path) -> None:
    made = table([[0.5, 0.5]], [[0]], [""])
    write_scores(made, str(tmp_path / "deep" / "scores.parquet"))
    assert pq.read_table(io.BytesIO(storage.read_bytes(str(tmp_path / "deep" / "scores.parquet")))).equals(made)
