from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.model.backbones.published import check_outputs, drawn, loaded, names_of, recording
from tpn_ray.errors import CheckpointError, ConfigError
from tpn_ray.model.backbones.inception import max_pool, same, symmetric
from tpn_ray.model.backbones.inception_i3d import inception_i3d
from tpn_ray.model.backbones.s3d import TOY, ceil, s3d, s3dg
from tpn_ray.model.recognizer import ModelConfig, build_model
from tpn_ray.model.weights import load_weights, mmaction2_state

LAYOUTS = {"s3d": "torchvision", "s3dg": "howto100m", "inception_i3d": "pytorch_i3d"}
TOYS = ["s3d_toy", "s3dg_toy", "inception_i3d_toy"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_outputs_are_the_published_codes(name: str) -> None:
    check_outputs(name, recording(name))


@pytest.mark.parametrize("name", LAYOUTS)
def test_names_are_the_published_codes(name: str) -> None:
    recorded, ours = recording(name), names_of(name, LAYOUTS[name])
    # The last layer of S3D-G's published network is an embedding of text, no classifier.
    assert set(recorded["keys"]) - set(ours) == ({"fc.weight", "fc.bias"} if name == "s3dg" else set())
    assert set(ours) <= set(recorded["keys"])


def test_kylemins_names_are_known_too() -> None:
    names = names_of("s3d", "kylemin")
    assert len(names) == len(recording("s3d")["keys"])
    assert {
        "base.0.conv_s.weight",
        "base.0.bn_t.running_var",
        "base.2.conv.weight",
        "base.3.conv_t.weight",
        "base.5.branch0.0.conv.weight",
        "base.6.branch1.0.bn.weight",
        "base.8.branch2.1.conv_s.weight",
        "base.12.branch1.1.bn_t.num_batches_tracked",
        "base.14.branch3.1.conv.weight",
        "base.15.branch0.0.bn.bias",
        "fc.0.weight",
    } <= set(names)


def test_a_1x1x1_convolution_is_a_classifier() -> None:
    recorded = recording("s3d")
    model = build_model(ModelConfig(backbone="s3d", neck="none"))
    state = {key: drawn(key, tuple(shape)) for key, shape in recorded["keys"].items()}
    report = load_weights(model, state)
    assert (report.layout, report.unused, report.missing) == ("torchvision", (), ())
    torch.testing.assert_close(model.head.linear.weight, state["classifier.1.weight"].flatten(1).float())
    other = build_model(ModelConfig(backbone="s3d", neck="none", classes=5))
    with pytest.raises(CheckpointError, match=r"another number of classes: classifier.1.weight \(400, 1024, 1, 1, 1\)"):
        load_weights(other, state)


@pytest.mark.parametrize("name", TOYS)
def test_published_names_lead_back(name: str) -> None:
    config = ModelConfig(backbone=name, neck="none", classes=3)
    model, other = build_model(config), build_model(config)
    (layout, *_) = config.spec.names
    ours = dict(zip(names_of(name, layout), model.backbone.state_dict().values(), strict=False))
    report = load_weights(other, ours, backbone_only=True)
    assert report.layout == layout
    pairs = zip(model.backbone.parameters(), other.backbone.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("changes", [{"levels": (4, 5), "alpha": (1, 2)}, {"neck": "none"}])
def test_a_training_step(name: str, changes: dict[str, object]) -> None:
    model = build_model(replace(ModelConfig(backbone=name, classes=3, alpha=(1, 2)), **changes))  # type: ignore[arg-type]
    scores = model(torch.randn(2, 3, 16, 48, 48))
    sum(part.square().mean() for part in (scores.action, *scores.auxiliary)).backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert unused == []


def test_stages_above_the_top_are_not_built_and_their_weights_are_left_over() -> None:
    low = build_model(ModelConfig(backbone="s3d_toy", classes=3, levels=(3, 4), alpha=(1, 2)))
    assert list(low.backbone.channels) == [3, 4]
    assert not any("mixed5" in key for key in low.state_dict())
    whole = build_model(ModelConfig(backbone="s3d_toy", classes=3, neck="none"))
    report = load_weights(low, whole.state_dict(), backbone_only=True)
    assert all("mixed5" in name or "head" in name for name in report.unused)


@pytest.mark.parametrize("build", [s3d, s3dg, inception_i3d])
def test_flow_has_two_channels(build: type) -> None:
    with torch.device("meta"):
        outputs = build(TOY, 3, inputs=2)(torch.empty(1, 2, 16, 64, 64))
    assert outputs[3].shape == (1, 60, 8, 8, 8)


def test_clips_that_do_not_fit_are_refused() -> None:
    model = build_model(ModelConfig(backbone="s3d_toy", classes=3, neck="none"))
    with pytest.raises(ConfigError, match="clips of 12 frames: s3d_toy needs at least 8, in multiples of 8"):
        model(torch.zeros(1, 3, 12, 48, 48))
    with pytest.raises(ConfigError, match="clips of 16 x 48 pixels: s3d_toy needs at least 17 x 17"):
        model(torch.zeros(1, 3, 8, 16, 48))


def test_s3d_takes_the_smallest_clips_that_it_says_it_takes() -> None:
    model = build_model(ModelConfig(backbone="s3d_toy", classes=3, neck="none"))
    assert model(torch.randn(2, 3, 8, 17, 17)).action.shape == (2, 3)


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (2, 2)])
def test_every_padding_of_max_pools(size: int, kernel: int, stride: int) -> None:
    clips = torch.rand(1, 2, size, size, size)

    def pooled(pads: object) -> torch.Tensor:
        return max_pool(clips, (kernel, kernel), (stride, stride), pads)  # type: ignore[arg-type]

    # TensorFlow's and PyTorch's ceil_mode give one output per whole or partial stride.
    assert pooled(same).shape[2:] == pooled(ceil).shape[2:] == 3 * (-(-size // stride),)
    if size >= kernel:
        half = (kernel - 1) // 2
        assert torch.equal(pooled(symmetric), torch.nn.functional.max_pool3d(clips, kernel, stride, half))
    front = max(kernel - stride, 0) // 2
    back = max(kernel - stride, 0) - front
    padded = torch.nn.functional.pad(clips, (front, back) * 3)
    if min(padded.shape[2:]) >= kernel:
        assert torch.equal(pooled(ceil), torch.nn.functional.max_pool3d(padded, kernel, stride, ceil_mode=True))


def test_mmaction2_has_none_of_them() -> None:
    with pytest.raises(ConfigError, match="mmaction2 has no s3d_toy"):
        mmaction2_state(build_model(ModelConfig(backbone="s3d_toy", classes=3, alpha=(1, 2))))


def test_gates_are_between_nothing_and_everything() -> None:
    recorded = recording("s3dg")
    gate = loaded("s3dg", recorded).backbone.gate2c
    clips = torch.rand(2, 192, 2, 3, 3, dtype=torch.float64)
    share = gate(clips) / clips
    assert share.min() > 0
    assert share.max() < 1
    torch.testing.assert_close(share, share[:, :, :1, :1, :1].expand_as(share))
