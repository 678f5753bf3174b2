"""timm's networks: with a stand-in for timm, so that its rules are tested everywhere, and with timm where it is."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tpn_ray.errors import ConfigError
from tpn_ray.model.backbones import backbone_spec, timm2d
from tpn_ray.model.backbones.resnet2d import shift
from tpn_ray.model.backbones.spec import STEM, Stage
from tpn_ray.model.layers import SharedStatistics
from tpn_ray.model.recognizer import ModelConfig, Recognizer, build_model
from tpn_ray.model.weights import load_weights, mmaction2_state


class Block(nn.Module):
    """A residual block as timm's ResNets have it, in small."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 1)
        self.downsample = nn.Conv2d(inputs, outputs, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv2(self.bn1(self.conv1(x)).relu()) + self.downsample(x))


class Whole(nn.Module):
    """A network as timm's, whose stages are either residual blocks or plain convolutions."""

    WIDTHS = (8, 16, 32, 64, 128)

    def __init__(self, residual: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, self.WIDTHS[0], 3, 2, 1))
        pairs = list(zip(self.WIDTHS, self.WIDTHS[1:], strict=False))
        self.stages = nn.Sequential(
            *(nn.Sequential(Block(*pair)) if residual else nn.Conv2d(*pair, 3, 2, 1) for pair in pairs)
        )
        self.fc = nn.Linear(self.WIDTHS[-1], 5)


class Info(SimpleNamespace):
    """What timm knows of the features."""

    out_indices: tuple[int, ...]

    def reduction(self) -> list[int]:
        return [2 ** (index + 1) for index in self.out_indices]

    def channels(self) -> list[int]:
        return [Whole.WIDTHS[index] for index in self.out_indices]

    def module_name(self) -> list[str]:
        return ["stem.0" if index == 0 else f"stages.{index - 1}" for index in self.out_indices]


class Features(nn.ModuleDict):
    """A network without its head and above the highest feature, its sequences taken apart, as timm does."""

    def __init__(self, whole: Whole, out_indices: tuple[int, ...], output_fmt: str) -> None:
        super().__init__({"stem_0": whole.stem[0]})
        self.update({f"stages_{i}": stage for i, stage in enumerate(whole.stages[: max(out_indices)])})
        self.feature_info = Info(out_indices=out_indices)
        self.output_fmt = SimpleNamespace(value=output_fmt)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        outputs = []
        for index, module in enumerate(self.values()):
            x = module(x)
            if index in self.feature_info.out_indices:
                outputs.append(x.permute(0, 2, 3, 1) if self.output_fmt.value == "NHWC" else x)
        return outputs


def create_model(
    name: str, *, pretrained: bool, features_only: bool = False, out_indices: tuple[int, ...] = (0, 1, 2, 3, 4)
) -> nn.Module:
    assert not pretrained
    if features_only and name == "headonly":
        raise RuntimeError("features_only not implemented for headonly")
    whole = Whole(residual=name == "resnet_tiny")
    return Features(whole, out_indices, "NHWC" if name == "last_tiny" else "NCHW") if features_only else whole


def get_pretrained_cfg(name: str) -> Any:
    config = {"license": "mit", "hf_hub_id": f"timm/{name}", "input_size": (3, 32, 32)}
    return SimpleNamespace(to_dict=lambda: config | {"fixed_input_size": name == "fixed_tiny"})


KNOWN = ["resnet_tiny", "plain_tiny", "last_tiny", "fixed_tiny", "headonly"]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    timm, models = ModuleType("timm"), ModuleType("timm.models")
    timm.__dict__.update(
        create_model=create_model, is_model=lambda name: name in KNOWN, list_models=lambda: KNOWN, models=models
    )
    models.__dict__.update(get_pretrained_cfg=get_pretrained_cfg)
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "timm.models", models)
    timm2d.timm_spec.cache_clear()
    yield
    timm2d.timm_spec.cache_clear()


def config(backbone: str, **changes: Any) -> ModelConfig:
    return ModelConfig(backbone=backbone, classes=3, alpha=(1, 2), **changes)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("name", ["resnet_tiny", "plain_tiny", "last_tiny"])
@pytest.mark.parametrize("prefix", ["timm/", "timm_tsm/"])
def test_levels_and_a_training_step(prefix: str, name: str) -> None:
    spec = backbone_spec(prefix + name)
    assert spec.stages == {s: Stage(Whole.WIDTHS[s - 1], space=2**s) for s in (2, 3, 4, 5)}
    assert spec.frames == ("shift" if prefix == "timm_tsm/" else "apart")
    assert (spec.sampling, spec.licence) == ("segments", f"mit (timm/{name}, by timm)")
    for neck in ("tpn", "none"):
        model = build_model(config(prefix + name, neck=neck))
        clips = torch.randn(2, 3, 4, 64, 64)
        assert {s: x.shape for s, x in model.backbone(clips).items()} == {
            s: (2, stage.channels, 4, 64 // stage.space, 64 // stage.space) for s, stage in spec.stages.items()
        }
        scores = model(clips)
        sum(part.square().mean() for part in (scores.action, *scores.auxiliary)).backward()
        assert all(p.grad is not None for p in model.parameters())
    follow_each_other(model)


def follow_each_other(model: Recognizer) -> None:
    """The stages that the parameters belong to, which the learning rate may depend on."""
    spec = model.config.spec
    stages = [spec.stage_of(name) for name, _ in model.backbone.named_parameters()]
    assert stages == sorted(stages)
    assert set(stages) == {STEM, *spec.stages}


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("name", ["resnet_tiny", "plain_tiny", "last_tiny"])
def test_only_shift_lets_frames_meet(name: str) -> None:
    clips = torch.randn(1, 3, 4, 64, 64)
    changed = clips.clone()
    changed[:, :, 0] += 1
    for prefix, reach in (("timm/", 1), ("timm_tsm/", 4)):
        backbone = build_model(config(prefix + name)).backbone.eval()
        before, after = backbone(clips)[5], backbone(changed)[5]
        assert [not torch.allclose(before[:, :, i], after[:, :, i], atol=1e-6) for i in range(4)] == [
            i < reach for i in range(4)
        ]


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(("placement", "shortcut"), [("residual", False), ("inplace", True)])
def test_residual_blocks_shift_as_tsm_does(placement: Any, shortcut: bool) -> None:
    backbone = build_model(config("timm_tsm/resnet_tiny", shift=placement)).backbone.eval()
    block = backbone.net["stages_0"][0]
    frames, t = torch.randn(8, 8, 6, 6), 4
    backbone.shifter.t = t
    moved = shift(frames, t)
    bare = create_model("resnet_tiny", pretrained=False).stages[0][0].eval()
    bare.load_state_dict(block.state_dict())
    inner = bare.conv2(bare.bn1(bare.conv1(moved)).relu())
    expected = torch.relu(inner + bare.downsample(moved if shortcut else frames))
    torch.testing.assert_close(block(frames), expected)


@pytest.mark.usefixtures("stand_in")
def test_other_networks_shift_before_their_stages() -> None:
    backbone = build_model(config("timm_tsm/plain_tiny")).backbone
    hooked = [name for name, module in backbone.net.named_modules() if module._forward_pre_hooks]
    assert hooked == ["stages_0", "stages_1", "stages_2", "stages_3"]


def test_tokens_and_channels_last_shift_along_their_channels() -> None:
    frames = torch.randn(8, 16, 3, 3)
    expected = shift(frames, 4)
    last, first = timm2d.Shifter(channels_last=True), timm2d.Shifter(channels_last=False)
    last.t = first.t = 4
    module = nn.Identity()
    torch.testing.assert_close(last(module, (frames.permute(0, 2, 3, 1),))[0].permute(0, 3, 1, 2), expected)
    tokens = first(module, (frames.flatten(2).transpose(1, 2),))[0]
    torch.testing.assert_close(tokens.transpose(1, 2).reshape(frames.shape), expected)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("name", ["timm/resnet_tiny", "timm_tsm/plain_tiny"])
def test_timms_own_files_load(name: str) -> None:
    whole = create_model(name.partition("/")[2], pretrained=False)
    buffer = io.BytesIO()
    torch.save(whole.state_dict(), buffer)
    model = build_model(config(name))
    report = load_weights(model, buffer.getvalue(), backbone_only=True)
    assert (report.layout, report.unused) == ("timm", ("fc.weight", "fc.bias"))
    assert torch.equal(model.backbone.net["stem_0"].weight, whole.stem[0].weight)
    assert not any(key.startswith("backbone.") for key in report.missing)
    with pytest.raises(ConfigError, match="mmaction2 has no timm"):
        mmaction2_state(model)


@pytest.mark.usefixtures("stand_in")
def test_stages_above_the_top_are_not_built() -> None:
    backbone = build_model(config("timm/resnet_tiny", levels=(3, 4))).backbone
    assert list(backbone.channels) == [2, 3, 4]
    assert "stages_3" not in backbone.net


@pytest.mark.usefixtures("stand_in")
def test_fresh_weights_are_timms() -> None:
    torch.manual_seed(0)
    expected = create_model("resnet_tiny", pretrained=False, features_only=True).state_dict()
    torch.manual_seed(0)
    found = build_model(config("timm/resnet_tiny")).backbone.net.state_dict()
    assert torch.equal(found["stem_0.weight"], expected["stem_0.weight"])


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("name", ["timm_tsm/resnet_tiny", "timm_tsm/last_tiny"])
def test_the_shift_is_exported(name: str) -> None:
    model, clips = build_model(config(name)).backbone.eval(), torch.randn(2, 3, 4, 32, 32)
    exported = torch.export.export(model, (clips,)).module()
    torch.testing.assert_close(exported(clips)[5], model(clips)[5])


@pytest.mark.usefixtures("stand_in")
def test_networks_that_fix_the_size_refuse_others() -> None:
    backbone = build_model(config("timm/fixed_tiny")).backbone
    with pytest.raises(ConfigError, match="clips of 64 x 64 pixels: this network takes only 32 x 32"):
        backbone(torch.zeros(1, 3, 2, 64, 64))
    assert backbone(torch.zeros(1, 3, 2, 32, 32))[5].shape == (1, 128, 2, 1, 1)


class Alone(SharedStatistics):
    """The statistics of one worker."""

    def __init__(self) -> None:
        self.counts = True
        self.gathered = 0

    def gather(self, mine: torch.Tensor) -> torch.Tensor:
        self.gathered += 1
        return mine[None]


def test_batch_norm_is_timms_with_its_activation_and_can_be_shared() -> None:
    published = nn.BatchNorm2d(4, eps=1e-3, momentum=0.3)
    nn.init.normal_(published.weight)
    published.add_module("drop", nn.Identity())
    published.add_module("act", nn.ReLU())
    ours, x = timm2d.Norm(published), torch.randn(5, 4, 3, 3)
    assert ours.state_dict().keys() == published.state_dict().keys()
    expected = torch.relu(nn.BatchNorm2d.forward(published, x))
    published.reset_running_stats()
    torch.testing.assert_close(ours(x), expected)
    ours.shared = Alone()  # type: ignore[assignment]
    torch.testing.assert_close(ours(x), expected)
    assert ours.shared.gathered == 1


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet_tin", "timm has no model 'resnet_tin'; nearest: resnet_tiny"),
        ("timm_tsm/zzz", "timm has no model 'zzz'; nearest: none"),
        ("timm/headonly", "timm cannot give features of headonly: features_only not implemented"),
    ],
)
def test_unknown_models_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(name)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("No module named 'timm'", name="timm"), r"need timm: pip install 'tpn_ray\[timm\]'"),
        (ModuleNotFoundError("No module named 'yaml'", name="yaml"), "timm cannot be imported, which needs yaml"),
        (RuntimeError("operator torchvision::nms does not exist"), "nms does not exist; the torchvision that it needs"),
    ],
)
def test_a_missing_or_broken_timm_is_explained(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise error

    monkeypatch.setattr(timm2d.importlib, "import_module", refuse)
    timm2d.timm_spec.cache_clear()
    with pytest.raises(ConfigError, match=message):
        config("timm/resnet18")


def real_timm() -> Any:
    try:
        return importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm cannot be imported: {error}")


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
@pytest.mark.parametrize("prefix", ["timm/", "timm_tsm/"])
def test_timm_itself(prefix: str, name: str) -> None:
    timm = real_timm()
    whole = timm.create_model(name, pretrained=False).eval()
    model = build_model(config(prefix + name))
    follow_each_other(model)
    report = load_weights(model, whole.state_dict(), backbone_only=True)
    assert report.layout == "timm"
    assert not any(key.startswith("backbone.") for key in report.missing)
    scores = model(torch.randn(2, 3, 4, 64, 64))
    sum(part.square().mean() for part in (scores.action, *scores.auxiliary)).backward()
    assert all(p.grad is not None for p in model.parameters())
    backbone, frame = model.backbone.eval(), torch.randn(1, 3, 1, 64, 64)
    reference = timm.create_model(name, pretrained=False, features_only=True).eval()
    reference.load_state_dict(backbone.net.state_dict())
    if prefix == "timm/":
        outputs = [*backbone(frame).values()]
        for ours, theirs in zip(outputs, reference(frame[:, :, 0])[-len(outputs) :], strict=True):
            torch.testing.assert_close(ours[:, :, 0], theirs)
