from __future__ import annotations

import io
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.vectors import weights_by_name
from tests.servers import S3Server
from tpn_ray.errors import CheckpointError, ConfigError, NotFoundError
from tpn_ray.model.layouts import names_in
from tpn_ray.model.recognizer import ModelConfig, Recognizer, build_model
from tpn_ray.model.weights import LoadReport, load_weights, load_what_fits, mmaction2_state, save_mmaction2

TOY = ModelConfig(backbone="slowonly_toy", classes=7, alpha=(4, 8))
TSM = replace(TOY, backbone="tsm_toy")


def resnet2d_state(model: Recognizer) -> dict[str, torch.Tensor]:
    """A 2D ImageNet ResNet of the same size, under torchvision's names."""
    state = {}
    for key, value in build_model(replace(model.config, backbone="tsn_toy", shift="residual")).state_dict().items():
        for name in names_in("resnet2d", model.config.spec, key, top_auxiliary=0):
            state[name] = torch.randn(value.shape) if value.ndim else value
    return state | {"fc.weight": torch.randn(1000, 256), "fc.bias": torch.randn(1000)}


def official_state(model: Recognizer, *, old: bool = False) -> dict[str, torch.Tensor]:
    """The network under the official code's names, made from mmaction2's by the map between those two code bases."""
    state = {}
    for key, value in mmaction2_state(model).items():
        name = key.replace(".net.", ".")
        name = re.sub(r"^(backbone\..*)conv(\d)\.conv\.", r"\1conv\2.", name)
        name = re.sub(r"^(backbone\..*)conv(\d)\.bn\.", r"\1bn\2.", name)
        name = name.replace(".downsample.conv.", ".downsample.0.").replace(".downsample.bn.", ".downsample.1.")
        name = re.sub(r"^neck\.", "necks.", name)
        name = name.replace("level_fusion_1.", "level_fusion_op2.").replace("level_fusion_2.", "level_fusion_op.")
        name = re.sub(r"\.downsamples\.(\d)\.conv\.conv\.", r".ops.\1.conv.", name)
        name = re.sub(r"\.downsamples\.(\d)\.conv\.bn\.", r".ops.\1.norm.", name)
        name = name.replace(".fusion_conv.conv.", ".fusion_conv.0.").replace(".fusion_conv.bn.", ".fusion_conv.1.")
        name = re.sub(r"temporal_modulation_ops\.(\d)\.conv\.conv\.", r"temporal_modulation_ops.\1.conv.", name)
        name = re.sub(r"downsample_ops\.(\d)\.conv\.conv\.", r"downsampling_ops.\1.conv.", name)
        name = name.replace("pyramid_fusion.conv.", "pyramid_fusion_op.0.").replace(
            "pyramid_fusion.bn.", "pyramid_fusion_op.1."
        )
        state[name.replace("aux_head.conv.", "aux_head.convs.0." if old else "aux_head.convs.")] = value
    return state


def same(a: Recognizer, b: Recognizer) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return all(torch.equal(left[key], right[key]) for key in left)


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("config", [TOY, TSM, replace(TOY, backbone="tsn_toy"), replace(TOY, neck="none")])
def test_mmaction2s_layout_returns(config: ModelConfig, tmp_path: Path) -> None:
    model, other = build_model(config), build_model(config)
    path = tmp_path / "weights.pth"
    save_mmaction2(model, str(path))
    report = load_weights(other, path)
    assert (report.layout, report.unused, report.missing) == ("mmaction2", (), ())
    assert len(report.used) == len(model.state_dict())
    assert same(model, other)


def test_weights_go_to_object_storage_and_return(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    model, other = build_model(TOY), build_model(TOY)
    uri = f"s3://{s3.bucket}/published/weights.pth"
    save_mmaction2(model, uri)
    load_weights(other, uri)
    assert same(model, other)


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"none\.pth"):
        load_weights(build_model(TOY), tmp_path / "none.pth")


def test_mmaction2s_names_and_shapes_are_the_published_ones() -> None:
    with torch.device("meta"):
        state = mmaction2_state(build_model(ModelConfig()))
        shifted = mmaction2_state(build_model(ModelConfig(backbone="tsm_r50", classes=174)))
    assert len(state) == len(shifted) == 379
    shapes = {
        "backbone.conv1.conv.weight": (64, 3, 1, 7, 7),
        "backbone.layer3.0.conv1.conv.weight": (256, 512, 3, 1, 1),
        "backbone.layer4.0.downsample.conv.weight": (2048, 1024, 1, 1, 1),
        "neck.spatial_modulation.spatial_modulation.0.0.conv.weight": (2048, 1024, 1, 3, 3),
        "neck.temporal_modulation_ops.1.conv.conv.weight": (1024, 64, 3, 1, 1),
        "neck.downsample_ops.0.conv.conv.weight": (1024, 1024, 3, 1, 1),
        "neck.level_fusion_2.downsamples.1.conv.conv.weight": (1024, 32, 1, 1, 1),
        "neck.level_fusion_1.fusion_conv.bn.running_var": (2048,),
        "neck.pyramid_fusion.conv.weight": (2048, 4096, 1, 1, 1),
        "neck.aux_head.conv.bn.num_batches_tracked": (),
        "neck.aux_head.fc.weight": (400, 2048),
        "cls_head.fc_cls.bias": (400,),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert tuple(shifted["backbone.layer2.3.conv1.conv.net.weight"].shape) == (128, 512, 1, 1)
    assert tuple(shifted["neck.temporal_modulation_ops.1.conv.conv.weight"].shape) == (1024, 64, 3, 1, 1)


@pytest.mark.parametrize("config", [TOY, TSM])
@pytest.mark.parametrize("old", [False, True])
def test_official_weights_load(config: ModelConfig, old: bool) -> None:
    model, other = build_model(config), build_model(config)
    report = load_weights(other, saved({"state_dict": official_state(model, old=old), "meta": {"epoch": 150}}))
    assert (report.layout, report.unused, report.missing) == ("official", (), ())
    assert same(model, other)


def test_our_own_weights_load_with_and_without_a_wrappers_prefix() -> None:
    model = build_model(TOY)
    for state in (model.state_dict(), {f"module.{key}": value for key, value in model.state_dict().items()}):
        other = build_model(TOY)
        assert load_weights(other, state).layout == "tpn_ray"
        assert same(model, other)


def test_a_2d_resnet_is_inflated() -> None:
    model = build_model(TOY)
    state = resnet2d_state(model)
    head = model.head.linear.weight.clone()
    report = load_weights(model, state)
    assert report.layout == "resnet2d"
    assert report.unused == ("fc.weight", "fc.bias")
    assert {name.split(".")[2] for name in report.inflated} == {"res4", "res5"}
    assert len(report.inflated) == 2
    assert all(not name.startswith("backbone.") for name in report.missing)
    ours = model.state_dict()
    for tap in range(3):
        kernel = ours["backbone.stages.res4.0.conv1.conv.weight"][:, :, tap : tap + 1]
        torch.testing.assert_close(kernel, state["layer3.0.conv1.weight"] / 3)
    assert torch.equal(ours["backbone.stages.res2.0.conv2.conv.weight"], state["layer1.0.conv2.weight"])
    assert torch.equal(ours["backbone.stages.res5.0.shortcut.norm.bias"], state["layer4.0.downsample.1.bias"])
    assert torch.equal(model.head.linear.weight, head)


def test_an_inflated_network_sees_a_still_clip_as_the_2d_network_sees_its_frame() -> None:
    config = replace(TOY, neck="none")
    deep, flat = build_model(config).eval(), build_model(replace(config, backbone="tsn_toy")).eval()
    state = resnet2d_state(deep) | {k: v.abs() for k, v in resnet2d_state(deep).items() if "running_var" in k}
    load_weights(deep, state)
    load_weights(flat, state)
    still = torch.randn(1, 3, 1, 32, 32).expand(-1, -1, 9, -1, -1)
    a, b = (net.backbone(still)[5] for net in (deep, flat))
    # Only the middle frame: the ends see zeros beyond the clip.
    torch.testing.assert_close(a[:, :, 4], b[:, :, 4], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backbone", ["i3d_toy", "nonlocal_toy"])
def test_kernels_of_an_image_network_are_spread_over_time(backbone: str) -> None:
    model = build_model(replace(TOY, backbone=backbone))
    state = resnet2d_state(model)
    report = load_weights(model, state)
    assert report.layout == "resnet2d"
    stem = model.state_dict()["backbone.stem.conv.weight"]
    assert stem.shape[2:] == (5, 7, 7)
    torch.testing.assert_close(stem.sum(2), state["conv1.weight"])
    assert {"backbone.stem.conv.weight", "backbone.stages.res2.0.branch.conv1.conv.weight"} <= set(report.inflated)
    fresh = [key for key in report.missing if key.startswith("backbone.")]
    assert bool(fresh) == (backbone == "nonlocal_toy") and all(".attention." in key for key in fresh)


def test_what_fits_of_a_file_is_loaded_and_the_rest_is_named() -> None:
    plain = mmaction2_state(build_model(replace(TOY, neck="none")))
    model = build_model(TOY)
    report = load_what_fits(model, plain)  # of the backbone alone, with a classifier
    assert torch.equal(model.state_dict()["backbone.stem.conv.weight"], plain["backbone.conv1.conv.weight"][:, :, 0])
    assert any(key.startswith("neck.") for key in report.missing) and "cls_head.fc_cls.weight" in report.unused
    assert load_what_fits(build_model(replace(TOY, classes=5)), mmaction2_state(model)).replaced
    assert load_what_fits(build_model(TOY), mmaction2_state(model)).missing == ()
    with pytest.raises(CheckpointError, match="85 entries have another shape"):
        load_what_fits(build_model(replace(TOY, backbone="slowonly_r50")), plain)


def test_a_2d_resnet_is_copied_into_2d_backbones() -> None:
    model = build_model(TSM)
    report = load_weights(model, resnet2d_state(model))
    assert report.inflated == ()
    assert not any(name.startswith("backbone.") for name in report.missing)


def test_another_number_of_classes_is_refused_or_replaced() -> None:
    state = mmaction2_state(build_model(TOY))
    model = build_model(replace(TOY, classes=5))
    fresh = model.head.linear.weight.clone()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=r"another number of classes: .*fc_cls.weight \(7, 256\), here \(5, 256\)"
    ):
        load_weights(model, state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    report = load_weights(model, state, replace_classifier=True)
    assert set(report.replaced) == {
        f"{head}.linear.{part}" for head in ("head", "auxiliary.0.head") for part in ("weight", "bias")
    }
    assert "fresh (4)" in str(report)
    assert torch.equal(model.head.linear.weight, fresh)
    assert torch.equal(model.state_dict()["backbone.stem.norm.weight"], state["backbone.conv1.bn.weight"])


def test_a_stray_copy_of_the_classifier_is_ignored() -> None:
    model = build_model(TOY)
    stray = {"cls_head.new_cls.weight": torch.zeros(7, 256, 1, 1, 1), "cls_head.new_cls.bias": torch.zeros(7)}
    report = load_weights(build_model(TOY), mmaction2_state(model) | stray)
    assert report.unused == tuple(stray)


def test_weights_without_auxiliary_heads_load() -> None:
    model = build_model(TOY)
    state = {key: value for key, value in mmaction2_state(model).items() if "aux_head" not in key}
    report = load_weights(build_model(TOY), state)
    assert report.missing
    assert all(name.startswith("auxiliary.0.") for name in report.missing)
    report = load_weights(build_model(replace(TOY, auxiliary_heads=False)), mmaction2_state(model))
    assert all("aux_head" in name for name in report.unused)


def test_a_baseline_gives_its_backbone_only_when_asked() -> None:
    baseline = build_model(replace(TOY, neck="none"))
    model = build_model(TOY)
    with pytest.raises(CheckpointError, match=r"lacks \d+ entries .*neck\..*; backbone_only=True takes the rest"):
        load_weights(model, mmaction2_state(baseline))
    report = load_weights(model, mmaction2_state(baseline), backbone_only=True)
    assert torch.equal(model.backbone.stem.conv.weight.squeeze(), baseline.backbone.stem.conv.weight.squeeze())
    assert "head.linear.weight" in report.missing


def test_a_pyramids_weights_are_not_a_baseline() -> None:
    with pytest.raises(CheckpointError, match="of another network than slowonly_toy, neck='none'"):
        load_weights(build_model(replace(TOY, neck="none")), mmaction2_state(build_model(TOY)))


def test_a_deeper_network_does_not_load_by_accident() -> None:
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in mmaction2_state(build_model(ModelConfig())).items()}
        deeper = mmaction2_state(build_model(ModelConfig(backbone="slowonly_r101")))
        model = build_model(ModelConfig())
    extra = {key: torch.empty(0) for key in deeper if key not in shapes}
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    with pytest.raises(CheckpointError, match=r"another network than slowonly_r50.*layer3\.6\."):
        load_weights(model, state | extra)


def test_shapes_that_differ_are_named() -> None:
    state = mmaction2_state(build_model(TOY))
    state["neck.pyramid_fusion.conv.weight"] = torch.zeros(256, 256, 1, 1, 1)
    with pytest.raises(CheckpointError, match=r"neck.pyramid_fusion.conv.weight \(256, 256, 1, 1, 1\), here"):
        load_weights(build_model(TOY), state)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"not a checkpoint", "cannot be read"),
        (saved([1, 2]), "holds a list"),
        (saved({"weight": torch.zeros(1)}), "no known layout .* its entries: weight"),
        (saved({}), "no tensors"),
    ],
)
def test_other_files_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_weights(build_model(TOY), content)


class Innocent:
    """Something a training framework left in its checkpoint."""

    def __init__(self) -> None:
        self.history = [1, 2, 3]


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def test_other_objects_of_a_training_framework_are_not_read() -> None:
    model, other = build_model(TOY), build_model(TOY)
    load_weights(other, saved({"message_hub": Innocent(), "state_dict": mmaction2_state(model)}))
    assert same(model, other)


def test_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"refers to .*mkdir, .*save its state_dict alone"):
        load_weights(build_model(TOY), saved({"hook": Malicious(), "state_dict": mmaction2_state(build_model(TOY))}))
    assert not (tmp_path / "executed").exists()


def test_a_file_from_before_torch_1_6_loads() -> None:
    model, other = build_model(TOY), build_model(TOY)
    buffer = io.BytesIO()
    torch.save({"state_dict": official_state(model, old=True)}, buffer, _use_new_zipfile_serialization=False)
    load_weights(other, buffer.getvalue())
    assert same(model, other)


def test_what_a_file_cannot_say_is_noted() -> None:
    official = official_state(build_model(TSM))
    notes = load_weights(build_model(replace(TSM, flow="parallel")), official).notes
    assert len(notes) == 2
    assert "cascade" in notes[0]
    assert "in place" in notes[1]
    assert load_weights(build_model(replace(TSM, shift="inplace")), official).notes == ()


@pytest.mark.parametrize(
    "config",
    [
        replace(TOY, flow="isolation"),
        replace(TOY, levels=(5,), rates=(1, 2), alpha=(1, 1)),
        replace(TOY, spatial_modulation=False),
        replace(TSM, shift="inplace"),
    ],
)
def test_what_mmaction2_cannot_express_is_not_written(config: ModelConfig) -> None:
    with pytest.raises(ConfigError, match="mmaction2"):
        mmaction2_state(build_model(config))


def test_three_levels_keep_the_auxiliary_head_that_mmaction2_has() -> None:
    config = replace(TOY, levels=(3, 4, 5), alpha=(2, 4, 8))
    model, other = build_model(config), build_model(config)
    state = mmaction2_state(model)
    assert torch.equal(state["neck.aux_head.fc.weight"], model.auxiliary[1].head.linear.weight)
    report = load_weights(other, state)
    assert all(name.startswith("auxiliary.0.") for name in report.missing)


def test_the_report_reads_as_a_summary() -> None:
    report = LoadReport("resnet2d", ("a", "b"), ("fc.weight",), tuple("abcdefgh"), ("x",), (), ("a note",))
    assert str(report).splitlines() == [
        "resnet2d weights: 2 entries used, 1 not",
        "  not used (1): fc.weight",
        "  missing (8): a, b, c, d, e, f and 2 more",
        "  inflated (1): x",
        "  note: a note",
    ]


def test_weights_made_by_name_cover_every_entry() -> None:
    model = build_model(TOY)
    shapes = {key: tuple(value.shape) for key, value in mmaction2_state(model).items()}
    assert load_weights(model, weights_by_name(shapes)).missing == ()


@pytest.mark.parametrize("channels", [2, 10])
def test_flow_begins_with_the_mean_of_the_colors(channels: int) -> None:
    """Of a network of RGB, and of an image network that is inflated at the same time."""
    flow = build_model(replace(TOY, in_channels=channels))
    rgb = build_model(TOY)
    report = load_weights(flow, rgb.state_dict())
    first = "backbone.stem.conv.weight"
    assert report.crossed == (first,)
    mean = rgb.state_dict()[first].mean(dim=1)
    for channel in range(channels):
        assert torch.equal(flow.state_dict()[first][:, channel], mean)
    others = [key for key in rgb.state_dict() if key != first]
    assert all(torch.equal(rgb.state_dict()[key], flow.state_dict()[key]) for key in others)
    image = resnet2d_state(rgb)
    report = load_weights(flow, image)
    assert report.crossed == (first,)
    assert first not in report.inflated
    assert len(report.inflated) == 2
    assert torch.equal(flow.state_dict()[first][:, 0], image["conv1.weight"].mean(dim=1))
    assert "from RGB to flow (1)" in str(report)
    assert not load_weights(flow, flow.state_dict()).crossed
    with pytest.raises(CheckpointError, match="have another shape"):
        load_weights(build_model(replace(TOY, in_channels=12 - channels)), flow.state_dict())
