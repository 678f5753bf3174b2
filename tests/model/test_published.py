"""The network against vectors that mmaction2's own TPN models computed in double precision (tests/model/reference/).

In double precision a right network and a slightly wrong one cannot be confused, whatever the machine: float32 runs of
the published code itself differ from these gradient norms by up to 1e-2 after three steps.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.model.vectors import noise, reference
from tpn_ray.model.layouts import names_in
from tpn_ray.model.recognizer import ModelConfig, Recognizer, build_model
from tpn_ray.model.weights import load_weights

CASES = {
    "slowonly_r50_k400_cascade": ModelConfig(dropout=0.0),
    "tsm_r50_sthv1_cascade": ModelConfig(backbone="tsm_r50", classes=174, dropout=0.0),
}
EXACT = 1e-9


@pytest.fixture(scope="module", params=CASES)
def published(request: pytest.FixtureRequest) -> tuple[Recognizer, dict[str, torch.Tensor], dict[str, Any]]:
    """A network, the weights to load into it, and what is expected of it."""
    weights, recorded = reference(request.param)
    with torch.device("meta"):
        model = build_model(CASES[request.param])
    return model.to_empty(device="cpu").to(memory_format=torch.channels_last), weights, recorded  # type: ignore[call-overload]


@pytest.fixture
def model(published: tuple[Recognizer, dict[str, torch.Tensor], dict[str, Any]]) -> Recognizer:
    model, weights, _ = published
    report = load_weights(model.double(), weights)
    assert (report.layout, len(report.used), report.unused, report.missing) == ("mmaction2", 379, (), ())
    return model.eval()


@pytest.fixture
def recorded(published: tuple[Recognizer, dict[str, torch.Tensor], dict[str, Any]]) -> dict[str, Any]:
    return published[2]


def clips_of(recorded: dict[str, Any]) -> torch.Tensor:
    """The recorded input as n c t h w."""
    clips = noise(recorded["clips"])
    return clips[:, 0] if clips.ndim == 6 else clips.transpose(1, 2)


def error(ours: torch.Tensor, theirs: list[Any]) -> float:
    """Largest difference relative to the largest value."""
    expected = torch.tensor(theirs, dtype=torch.float64)
    assert ours.shape == expected.shape
    return ((ours - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
def test_scores(model: Recognizer, recorded: dict[str, Any]) -> None:
    clips = clips_of(recorded)
    assert error(model(clips.double()).action, recorded["logits"]) < EXACT
    assert error(model.float()(clips).action, recorded["logits"]) < 1e-5


@torch.no_grad()
def test_views_of_a_video(model: Recognizer, recorded: dict[str, Any]) -> None:
    """Frames that are not square, and the mean of the views' probabilities; recorded in float32."""
    pixels = noise(recorded["views"])[0].double()
    # views c t h w, or the frames of all views one after the other
    views = pixels if pixels.ndim == 5 else pixels.unflatten(0, (-1, 8)).transpose(1, 2)
    found = model(views).action.softmax(1).mean(0)
    assert error(found, recorded["views"]["float32_probabilities"]) < 1e-5


def test_three_training_steps(model: Recognizer, recorded: dict[str, Any]) -> None:
    """Losses and gradients; scores at the end depend on the running statistics of all steps too."""
    clips, labels = clips_of(recorded).double(), torch.tensor(recorded["labels"])
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    model.train()
    for step, expected in enumerate(recorded["train_steps"]):
        scores = model(clips)
        loss = F.cross_entropy(scores.action, labels)
        auxiliary = 0.5 * F.cross_entropy(scores.auxiliary[0], labels)
        optimizer.zero_grad()
        (loss + auxiliary).backward()
        if step == 0:
            norms = recorded["gradient_norms_of_first_step"]
            assert gradient_norms(model, norms) == pytest.approx(norms, rel=EXACT, abs=0)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 40)
        optimizer.step()
        found = {"loss_cls": loss, "loss_aux": auxiliary, "total": loss + auxiliary, "grad_norm_before_clip": norm}
        assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=EXACT, abs=0)
    with torch.no_grad():
        assert error(model.eval()(clips).action, recorded["logits_after_three_steps"]) < EXACT


def gradient_norms(model: Recognizer, names: Container[str]) -> dict[str, float]:
    """Norm of every parameter's gradient, by whichever of mmaction2's names is among `names`."""
    norms = {}
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None
        name = next(name for name in names_in("mmaction2", model.config.spec, key, top_auxiliary=0) if name in names)
        norms[name] = parameter.grad.norm().item()
    return norms
