"""What the analysis makes of several seeds, and of what it is not given. tests/jobs/test_tempo.py runs all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import save_untrained
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.datasets.toy import TOY_CLASSES
from tpn_ray.resources import Resources
from tpn_ray.tempo import scoring
from tpn_ray.tempo.scoring import TempoQuestion


def test_of_several_seeds_the_mean_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"seed0": {"a": True, "b": False}, "seed1": {"a": True, "b": True, "c": True}}
    monkeypatch.setattr(scoring, "_hits", lambda checkpoint, *_: found[checkpoint])
    assert scoring.hits(["seed0", "seed1"], None, "1x1", None) == {"a": 1.0, "b": 0.5}  # type: ignore[arg-type]


def test_played_speed_alone_needs_no_single_frames(
    toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figure 5: both networks at every stride and at the trained one, with all their seeds."""
    manifest, uri = load_manifest(str(toy_folder)).select("val"), save_untrained(tmp_path / "c", TOY_CLASSES)
    asked = list[tuple[str, str]]()

    def hits(checkpoint: str, *given: object) -> dict[str, bool]:
        asked.append((checkpoint, str(given[1])))
        return dict.fromkeys(manifest.ids, True)

    monkeypatch.setattr(scoring, "_hits", hits)
    question = TempoQuestion(first=(uri, uri), second=(uri,), strides=(2, 8))
    tempos, report = scoring.analyse(question, manifest, {}, Resources())
    assert tempos == []
    assert report.numbers["strides"]["stride"] == [2, 4, 8]
    assert report.pictures.keys() == {"strides.png"}
    assert len(asked) == 3 * (2 + 1)
    scoring.write(str(tmp_path / "out"), tempos, report)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"strides.png", "report.html", "report.json"}
