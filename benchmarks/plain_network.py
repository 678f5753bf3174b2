"""The published network as it is usually written: Conv3d, BatchNorm3d, and MaxPool3d over n c t h w. Torch only.

A baseline for speed. Modules have mmaction2's names, so `mmaction2_state` of the project's network loads into it; it is
SlowOnly-R50 with the pyramid over res4 and res5, cascade flow, and alpha 8 8.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tpn_ray.model.recognizer import Recognizer
from tpn_ray.model.weights import mmaction2_state

Triple = tuple[int, int, int]
BLOCKS, WIDTHS = (3, 4, 6, 3), (64, 128, 256, 512)
ALPHA = 8


class ConvModule(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: Triple, stride: int = 1, *, groups: int = 1, relu: bool = True
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(inputs, outputs, kernel, (1, stride, stride), padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm3d(outputs)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x))
        return F.relu(y, inplace=True) if self.relu else y


class Bare(nn.Module):
    """A convolution under the name that mmaction2 gives it."""

    def __init__(self, inputs: int, outputs: int, groups: int = 1) -> None:
        super().__init__()
        convolution = nn.Conv3d(inputs, outputs, (3, 1, 1), padding=(1, 0, 0), groups=groups, bias=False)
        self.conv = nn.ModuleDict({"conv": convolution})

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv["conv"](x)
        return y


class Block(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, inflated: bool) -> None:
        super().__init__()
        self.conv1 = ConvModule(inputs, width, (3, 1, 1) if inflated else (1, 1, 1))
        self.conv2 = ConvModule(width, width, (1, 3, 3), stride)
        self.conv3 = ConvModule(width, 4 * width, (1, 1, 1), relu=False)
        self.downsample = (
            ConvModule(inputs, 4 * width, (1, 1, 1), stride, relu=False) if inputs != 4 * width else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv3(self.conv2(self.conv1(x))) + self.downsample(x), inplace=True)


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvModule(3, 64, (1, 7, 7), 2)
        inputs = 64
        for i, (blocks, width) in enumerate(zip(BLOCKS, WIDTHS, strict=True)):
            layer = nn.Sequential()
            for block in range(blocks):
                layer.append(Block(inputs, width, 2 if i and not block else 1, i >= 2))
                inputs = 4 * width
            setattr(self, f"layer{i + 1}", layer)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.max_pool3d(self.conv1(x), (1, 3, 3), (1, 2, 2), (0, 1, 1))
        first, second, third, fourth = (self.get_submodule(f"layer{i}") for i in (1, 2, 3, 4))
        res4: Tensor = third(second(first(x)))
        return res4, fourth(res4)


class Fusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.downsamples = nn.ModuleList(
            nn.ModuleDict({"conv": ConvModule(1024, 1024, (1, 1, 1), groups=32)}) for _ in range(2)
        )
        self.fusion_conv = ConvModule(2048, 2048, (1, 1, 1))

    def forward(self, levels: list[Tensor]) -> Tensor:
        mixed = [mix["conv"](level) for mix, level in zip(self.downsamples, levels, strict=True)]  # type: ignore[index]
        fused: Tensor = self.fusion_conv(torch.cat(mixed, dim=1))
        return fused


class Neck(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        lifts = nn.ModuleList([nn.Sequential(ConvModule(1024, 2048, (1, 3, 3), 2)), nn.Sequential()])
        self.spatial_modulation = nn.ModuleDict({"spatial_modulation": lifts})
        self.temporal_modulation_ops = nn.ModuleList(Bare(2048, 1024, 32) for _ in range(2))
        self.downsample_ops = nn.ModuleList([Bare(1024, 1024)])
        self.level_fusion_1, self.level_fusion_2 = Fusion(), Fusion()
        self.pyramid_fusion = ConvModule(4096, 2048, (1, 1, 1))
        self.aux_head = nn.ModuleDict({"conv": ConvModule(1024, 2048, (1, 3, 3), 2), "fc": nn.Linear(2048, classes)})

    def forward(self, levels: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        lift: nn.Module = self.spatial_modulation["spatial_modulation"][0]  # type: ignore[index]
        lifted = (lift(levels[0]), levels[1])
        low, top = (
            F.max_pool3d(move(level), (ALPHA, 1, 1), (ALPHA, 1, 1), ceil_mode=True)
            for move, level in zip(self.temporal_modulation_ops, lifted, strict=True)
        )
        low = low + top
        first = self.level_fusion_1([low, top])
        top = top + self.downsample_ops[0](low)
        second = self.level_fusion_2([low, top])
        auxiliary = self.aux_head["fc"](self.aux_head["conv"](levels[0]).mean(dim=(2, 3, 4)))
        return self.pyramid_fusion(torch.cat([first, second], dim=1)), auxiliary


class PlainNetwork(nn.Module):
    """Clips n c t h w -> scores of the classification head and of the auxiliary head; without dropout."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone, self.neck = Backbone(), Neck(classes)
        self.cls_head = nn.ModuleDict({"fc_cls": nn.Linear(2048, classes)})

    def forward(self, clips: Float[Tensor, "n c t h w"]) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
        feature, auxiliary = self.neck(self.backbone(clips))
        return self.cls_head["fc_cls"](feature.mean(dim=(2, 3, 4))), auxiliary


def plain_copy(model: Recognizer) -> PlainNetwork:
    """Return the plain network with the weights of `model`, on its device."""
    state = mmaction2_state(model)
    network = PlainNetwork(model.config.label_sets[0])
    network.load_state_dict(state)
    return network.to(next(model.parameters()).device)
