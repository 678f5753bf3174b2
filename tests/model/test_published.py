"""The network against vectors recorded from mmaction2's own TPN models; skipped where the vectors are not at hand.

The published arithmetic meets them to the last digits, through three steps of SGD. The fast one is held to what float32
allows: clips of 64 pixels leave batch norm few values, and the recorded gradients themselves differ from double
precision by up to 3e-3, the losses after two steps by up to 1e-3. `test_tpn.py` shows in double precision that both
compute the same function.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.model.conftest import reference
from tpn_ray.model.frames import fold, unfold
from tpn_ray.model.layouts import names_in
from tpn_ray.model.recognizer import ModelConfig, Recognizer, build_model
from tpn_ray.model.weights import load_weights

CASES = {
    "slowonly_r50_k400_cascade": ModelConfig(dropout=0.0),
    "tsm_r50_sthv1_cascade": ModelConfig(backbone="tsm_r50", classes=174, dropout=0.0),
}


@pytest.fixture(scope="module", params=[(case, kind) for case in CASES for kind in ("published", "fast")], ids=str)
def published(request: pytest.FixtureRequest) -> tuple[Recognizer, torch.Tensor, dict[str, Any]]:
    case, arithmetic = request.param
    weights, recorded = reference(case)
    with torch.device("meta"):
        model = build_model(CASES[case], arithmetic)
    model = model.to_empty(device="cpu")
    if arithmetic == "fast":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    report = load_weights(model, weights)
    assert (report.layout, len(report.used), report.unused, report.missing) == ("mmaction2", 379, (), ())
    clips = recorded["input"]
    return model, clips[:, 0] if clips.ndim == 6 else clips.transpose(1, 2), recorded


@pytest.fixture(autouse=True)
def two_threads(one_thread: None) -> None:
    """As recorded; with one thread torch picks kernels that round differently."""
    torch.set_num_threads(2)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def test_features_and_scores(published: tuple[Recognizer, torch.Tensor, dict[str, Any]]) -> None:
    model, clips, recorded = published
    model.eval()
    with torch.no_grad():
        stages = model.backbone(fold(clips), 8)
        scores = model(clips).action
    for stage, theirs in zip((4, 5), recorded["backbone_feats"], strict=True):
        ours = unfold(stages[stage], 8) if theirs.ndim == 5 else stages[stage]
        assert relative(ours, theirs) < 1e-4
    assert relative(scores, recorded["logits"]) < 1e-4
    torch.testing.assert_close(scores.softmax(1), recorded["probs"], rtol=1e-4, atol=1e-7)


def test_views_of_a_video(published: tuple[Recognizer, torch.Tensor, dict[str, Any]]) -> None:
    """Frames that are not square, and the mean of the views' probabilities."""
    model, _, recorded = published
    model.eval()
    seed, shape = recorded["multiview_input_seed_shape"]
    pixels = torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).float()
    # views c t h w, or the frames of all views one after the other
    views = pixels[0] if pixels.ndim == 6 else pixels[0].unflatten(0, (-1, 8)).transpose(1, 2)
    with torch.no_grad():
        found = model(views).action.softmax(1).mean(0, keepdim=True)
    torch.testing.assert_close(found, recorded["multiview_predict_score"], rtol=1e-4, atol=1e-7)


def test_three_training_steps(published: tuple[Recognizer, torch.Tensor, dict[str, Any]]) -> None:
    model, clips, recorded = published
    exact = model.arithmetic == "published"
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    for step, expected in enumerate(recorded["train_steps"]):
        scores = model(clips)
        loss = F.cross_entropy(scores.action, recorded["labels"])
        auxiliary = 0.5 * F.cross_entropy(scores.auxiliary[0], recorded["labels"])
        optimiser.zero_grad()
        (loss + auxiliary).backward()
        if step == 0:
            compare_gradients(model, recorded["grad_norms_step0"], worst=1e-3 if exact else 6e-3)
            compare_memory(model, recorded["running_stats_after_step0"])
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 40)
        optimiser.step()
        allowance = 1e-4 if exact else (1e-5, 1e-3, 5e-3)[step]
        assert loss.item() == pytest.approx(expected["loss_cls"], abs=allowance)
        assert auxiliary.item() == pytest.approx(expected["loss_aux"], abs=allowance)
        assert norm.item() == pytest.approx(
            expected["grad_norm_before_clip"], rel=(1e-4, 1e-3, 5e-3)[step] if exact else (1e-4, 3e-2, 3e-2)[step]
        )


def compare_gradients(model: Recognizer, expected: dict[str, float], *, worst: float) -> None:
    errors = []
    for key, parameter in model.named_parameters():
        name = next(name for name in names_in("mmaction2", key, top_auxiliary=0) if name in expected)
        errors.append(abs(parameter.grad.norm().item() / expected[name] - 1))
    errors.sort()
    assert len(errors) == len(expected)
    assert errors[len(errors) // 2] < 3e-4
    assert errors[-1] < worst


def compare_memory(model: Recognizer, expected: dict[str, torch.Tensor]) -> None:
    ours = model.state_dict()
    for key, name in (("backbone.stem", "backbone.conv1.bn"), ("neck.pyramid_fusion", "neck.pyramid_fusion.bn")):
        for part in ("running_mean", "running_var"):
            assert relative(ours[f"{key}.norm.{part}"], expected[f"{name}.{part}"]) < 1e-4
