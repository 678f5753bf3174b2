from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs import compare as job
from tpn_ray.errors import ConfigError
from tpn_ray.predict.compare import Named
from tpn_ray.predict.fusion import fuse
from tpn_ray.predict.summary import scores_array
from tpn_ray.predict.table import LABEL_SETS_KEY, LIST, VIDEOS, read_scores, write_scores

SETS = {"action": ("run", "walk", "jump")}


def scores(
    rows: dict[str, list[float]], *, bad: str = "", label: int = 0, sets: dict[str, tuple[str, ...]] = SETS
) -> Named:
    ids = list(rows)
    columns = {
        "id": ids,
        "labels": [[label]] * len(ids),
        "predicted": pa.array([[]] * len(ids), type=pa.list_(pa.string())),
        "scores": pa.array(list(rows.values()), type=LIST),
        "reason": pa.array(["damaged" if id == bad else "" for id in ids]),
        "message": pa.array(["it is damaged" if id == bad else "" for id in ids]),
    }
    return pa.table(columns, metadata={LABEL_SETS_KEY: json.dumps(sets)}), sets


RGB = {"a": [0.6, 0.4, 0.0], "b": [0.2, 0.8, 0.0], "c": [0.5, 0.25, 0.25], "d": [1.0, 0.0, 0.0]}
FLOW = {"c": [0.1, 0.2, 0.7], "b": [0.9, 0.1, 0.0], "a": [0.5, 0.5, 0.0], "e": [1.0, 0.0, 0.0]}


def test_scores_are_the_weighted_mean_of_the_videos_in_both() -> None:
    table, sets = fuse(scores(RGB, bad="a"), scores(FLOW), 1.5)
    assert sets == SETS
    assert table["id"].to_pylist() == ["a", "b", "c"]
    expected = [[(x + 1.5 * y) / 2.5 for x, y in zip(RGB[id], FLOW[id], strict=True)] for id in "abc"]
    np.testing.assert_allclose(scores_array(table), expected, rtol=1e-6)
    assert table["predicted"].to_pylist() == [[], ["run"], ["jump"]]
    assert table["reason"].to_pylist() == ["damaged", "", ""]


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(ConfigError, match="other classes"):
        fuse(scores(RGB), scores(FLOW, sets={"action": ("walk", "run", "jump")}), 1)
    with pytest.raises(ConfigError, match="other labels"):
        fuse(scores(RGB), scores(FLOW, label=1), 1)
    with pytest.raises(ConfigError, match="no video in common"):
        fuse(scores(RGB), scores({"x": [1.0, 0.0, 0.0]}), 1)
    with pytest.raises(ConfigError, match="fuse=-1 must be above 0"):
        fuse(scores(RGB), scores(FLOW), -1)


def test_the_job_compares_the_first_with_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scores(scores(RGB)[0], str(tmp_path / "rgb" / VIDEOS))
    write_scores(scores(FLOW)[0], str(tmp_path / "flow" / VIDEOS))
    folders = [str(tmp_path / name) for name in ("rgb", "flow")]
    monkeypatch.setattr(sys, "argv", ["compare.py", *folders, "--fuse", "1.5", "--out", str(tmp_path / "both")])
    job.main()
    printed = capsys.readouterr().out
    assert "action: 66.67% for the second alone" in printed
    assert "fused" in printed and "no significant difference" in printed
    fused, _ = read_scores(str(tmp_path / "both"))
    assert fused["predicted"].to_pylist() == [["run"], ["run"], ["jump"]]
