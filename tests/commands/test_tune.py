"""A campaign that is refused: the words say what would do, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.jobs.processes import refusal
from tpn_ray.tuning.journal import Journal


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--searcher", "tpee"], "unknown searcher 'tpee' (did you mean tpe?)"),
        (["--scheduler", "halvin"], "unknown scheduler 'halvin' (did you mean halving?)"),
        (["--objectives", "top"], "unknown objectives 'top' (did you mean top1?)"),
        (["--space", "lambda_alfa"], "unknown space 'lambda_alfa' (did you mean lambda_alpha?)"),
        (["--fidelity", "clip.frame=8,16"], "'clip.frame' (did you mean clip.frames"),
        (["--samples", "-1"], "samples=-1 must be at least 1"),
        (["--scheduler", "pbt", "--searcher", "tpe"], "use --searcher random or grid, not tpe"),
        (["--scheduler", "pbt", "--vary", "clip.frames=whole(8,16)"], "pbt changes fields in flight"),
        (["--rungs", "0"], "rungs=0 must be at least 1"),
        (["--workers", "0"], "give --workers 1 or more here"),
        (["--cpus-per-worker", "500"], "too few cores: the workers need 500 CPUs"),
    ],
)
def test_a_refused_campaign_leaves_nothing(flags: list[str], words: str, toy_folder: Path, tmp_path: Path) -> None:
    said = refusal("tune", "toy", "--data", str(toy_folder), "--storage", str(tmp_path), *flags)
    assert words in said
    assert list(tmp_path.iterdir()) == []


def test_other_settings_are_refused_before_ray_starts(toy_folder: Path, tmp_path: Path) -> None:
    Journal(uri=str(tmp_path / "mine")).begin({"samples": 3})
    where = ["--storage", str(tmp_path), "--name", "mine"]
    said = refusal("tune", "toy", "--data", str(toy_folder), *where, "--address", "127.0.0.1:9")
    assert "is a campaign with other settings" in said
    assert "samples: 3 then, 16 now" in said
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["campaign.json"]
