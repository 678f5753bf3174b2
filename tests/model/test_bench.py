from __future__ import annotations

from typing import Any

import pytest
import torch

from tpn_ray.model import bench
from tpn_ray.model.bench import StepBench, describe_ratio, measure_step
from tpn_ray.model.recognizer import ModelConfig, Scores

TOY = ModelConfig(backbone="slowonly_toy", classes=5, alpha=(4, 8), dropout=0.0)


def test_all_forms_are_measured_and_compute_the_same() -> None:
    report = measure_step(StepBench(model=TOY, frames=8, size=32, rounds=2, threads=1, precisions=("fp32", "bf16")))
    assert [row.name for row in report.rows] == [
        f"{form} {precision} eager"
        for form in ("plain", "plain-channels-last", "ours")
        for precision in ("fp32", "bf16")
    ]
    assert all(len(row.train_seconds) == len(row.infer_seconds) == 2 for row in report.rows)
    assert report.rows[0].scores_error == 0
    assert max(row.scores_error for row in report.rows if "fp32" in row.name) < 1e-4
    text = str(report)
    assert "training step: " in text
    assert "ours bf16 eager" in text


def test_a_form_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: Any, clips: torch.Tensor) -> Scores:
        return Scores(model(clips).action + 1, ())

    monkeypatch.setattr(bench, "plain_forward", wrong)
    with pytest.raises(ValueError, match="does not compute what plain fp32 eager computes"):
        measure_step(StepBench(model=TOY, frames=8, size=32, rounds=1, device="cpu"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch=0 must be at least 1"),
        ({"forms": ()}, "at least one value"),
        ({"model": ModelConfig(spatial_modulation=False)}, "--forms ours"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepBench(**options)


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    assert describe_ratio((2.0, 3.0, 8.0), (1.0, 2.0, 2.0)).split() == ["2.00", "1.50-4.00"]
