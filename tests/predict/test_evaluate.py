"""What evaluating writes, with names of a stranger's dataset."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import save_untrained
from tpn_ray.clips import rows
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.predict import evaluate
from tpn_ray.predict.labels import Matched
from tpn_ray.predict.scorer import SCORES, VIEW_SCORES
from tpn_ray.resources import Resources


def test_no_file_is_written_outside_the_folder(
    tmp_path: Path, toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where a name got past the check of what is read."""
    checkpoint = save_untrained(tmp_path / "checkpoint")
    question = evaluate.ask(checkpoint, str(toy_folder), "val", "1x1", ())
    manifest = load_manifest(str(toy_folder)).select("val")
    hostile = dataclasses.replace(manifest, label_sets={"/../../../escape": manifest.label_sets["action"]})
    question = dataclasses.replace(question, matched=Matched(hostile, {}))
    count, classes = len(hostile), len(hostile.label_sets["/../../../escape"])

    def blocks(*_: object, **__: object) -> object:
        scores = np.full((count, 1, classes), 1 / classes, dtype=np.float32)
        yield {
            rows.SAMPLE: np.arange(count),
            rows.LABELS: hostile.labels,
            SCORES: scores,
            VIEW_SCORES: scores[:, :, None],
            rows.REASON: np.array([""] * count),
            rows.MESSAGE: np.array([""] * count),
        }

    monkeypatch.setattr(evaluate.scoring, "score", blocks)
    out = tmp_path / "a" / "b" / "out"
    (result,) = evaluate.evaluate(question, Resources(), str(out))
    assert result._repr_html_().count('src="data:image/png;base64,') == 3
    assert "<th>videos</th><td>16</td>" in result._repr_html_()
    written = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    pictures = [path for path in written if path.name.startswith(("confusion_", "classes_", "escape"))]
    assert len(pictures) == 2
    assert all(path.parent == Path("a/b/out") for path in pictures)
