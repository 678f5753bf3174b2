from __future__ import annotations

import torch

from tpn_ray.model.backbones.resnet2d import R50, R101, TOY, Bottleneck, ResNet, shift, tsm, tsn


def times(net: ResNet) -> list[list[str]]:
    return [[block.time for block in blocks] for blocks in net.stages.values()]  # type: ignore[attr-defined, union-attr]


def test_shift_moves_an_eighth_each_way() -> None:
    clips = torch.arange(1.0, 2 * 4 * 16 + 1).view(2, 4, 16, 1, 1)
    moved = shift(clips.flatten(0, 1), 4).view(2, 4, 16)
    clips = clips.view(2, 4, 16)
    assert torch.equal(moved[:, :-1, :2], clips[:, 1:, :2])
    assert torch.equal(moved[:, 1:, 2:4], clips[:, :-1, 2:4])
    assert torch.equal(moved[:, :, 4:], clips[:, :, 4:])
    assert moved[:, -1, :2].abs().sum() == 0
    assert moved[:, 0, 2:4].abs().sum() == 0


def test_shift_does_not_touch_its_input() -> None:
    frames = torch.randn(8, 16, 3, 3)
    before = frames.clone()
    shift(frames, 4)
    assert torch.equal(frames, before)


def test_deep_networks_shift_every_second_block_in_the_residual_variant_only() -> None:
    with torch.device("meta"):
        assert all(time == "shift" for stage in times(tsm(R50, 5, "residual")) for time in stage)
        deep = times(tsm(R101, 5, "residual"))
        assert deep[0] == ["shift", "apart", "shift"]
        assert deep[2] == ["shift", "apart"] * 11 + ["shift"]
        assert all(time == "shift_inplace" for stage in times(tsm(R101, 5, "inplace")) for time in stage)


def test_in_place_shifts_what_the_shortcut_sees() -> None:
    torch.manual_seed(0)
    residual, inplace = Bottleneck(16, 4, 2, "shift").eval(), Bottleneck(16, 4, 2, "shift_inplace").eval()
    inplace.load_state_dict(residual.state_dict())
    frames = torch.randn(4, 16, 6, 6)
    moved = shift(frames, 4)
    inner = residual.conv3(residual.conv2(residual.conv1(moved)))
    assert residual.shortcut is not None
    torch.testing.assert_close(residual(frames, 4), torch.relu(inner + residual.shortcut(frames)))
    torch.testing.assert_close(inplace(frames, 4), torch.relu(inner + residual.shortcut(moved)))


def test_frames_are_apart_without_shift() -> None:
    net = tsn(TOY, 5).eval()
    clips = torch.randn(1, 3, 4, 32, 32)
    alone = clips[:, :, 2:3]
    torch.testing.assert_close(net(clips)[5][:, :, 2:3], net(alone)[5], rtol=1e-4, atol=1e-5)


def test_stages_above_the_top_are_not_built() -> None:
    net = tsn(TOY, 3)
    assert list(net(torch.randn(1, 3, 2, 32, 32))) == [2, 3]
    assert not any("res4" in name for name in net.state_dict())


def test_strides_and_channels_of_the_stages() -> None:
    with torch.device("meta"):
        outputs = tsn(R50, 5)(torch.empty(1, 3, 1, 224, 224))
    assert {stage: tuple(x[:, :, 0].shape[1:]) for stage, x in outputs.items()} == {
        2: (256, 56, 56),
        3: (512, 28, 28),
        4: (1024, 14, 14),
        5: (2048, 7, 7),
    }
