from __future__ import annotations

import pytest

from tpn_ray import recipes
from tpn_ray.model.convolution_check import ConvolutionReport
from tpn_ray.recipe import replace_fields
from tpn_ray.training import worker
from tpn_ray.training.events import Event, Notice
from tpn_ray.training.step import Training


@pytest.mark.parametrize("trusted", [True, False])
def test_bf16_that_cannot_be_trusted_is_given_up_with_a_warning(trusted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace_fields(recipes.toy(), {"loop.precision": "bf16"})
    training = Training(recipe.model, recipe.loss, recipe.optim, recipe.loop, "cpu")
    # Some processors have the fault and some have not: what is found on this one is not asked here.
    found = ConvolutionReport(trusted, "stem on (1, 3, 8, 8)", 0.001 if trusted else 0.5)
    monkeypatch.setattr(worker, "convolution_self_test", lambda *_: found)
    told: list[Event] = []
    worker.distrust_bf16(training, told.append, recipe, 0)
    assert training.loop.precision == ("bf16" if trusted else "fp32")
    texts = [event.text for event in told if isinstance(event, Notice)]
    assert len(texts) == (0 if trusted else 1)
    assert all("float32" in text and "stem" in text for text in texts)


def test_a_run_ends_when_its_evaluations_rise_no_more() -> None:
    assert worker.why_end([0.1, 0.3, 0.2], 2) == ""
    assert worker.why_end([0.1, 0.3, 0.2, 0.3], 2) == "the last 2 evaluations did not reach more than 30.0% top-1"
    assert worker.why_end([0.3, 0.2, 0.2, 0.31], 2) == ""
    assert worker.why_end([0.3, 0.2, 0.2, 0.2], 0) == ""
