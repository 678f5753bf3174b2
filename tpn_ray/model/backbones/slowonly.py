"""SlowOnly, the inflated 3D ResNet that the paper calls I3D. Runs anywhere, torch only.

Only the first convolution of each block in res4 and res5 is 3x1x1; everything else is 1xkxk and keeps frames apart. So
the network is the 2D ResNet with those convolutions looking one frame back and one ahead. There is no temporal stride.
"""

from __future__ import annotations

from tpn_ray.model.backbones.resnet2d import SIZES, ResNet, Size, spec
from tpn_ray.model.backbones.spec import BackboneSpec, Published

INFLATED_STAGES = (4, 5)


def slowonly(size: Size, top: int) -> ResNet:
    """Build a SlowOnly of the given size, up to stage res`top`; residual branches start at zero, as in mmaction2."""
    return ResNet(
        size, top, lambda stage, block: "convolve" if stage in INFLATED_STAGES else "apart", zero_residual=True
    )


PUBLISHED = {
    "r50": Published(frames=8, stride_frames=8, top1="75.6 % on Kinetics-400", source="mmaction2, from ImageNet"),
    "r101": Published(frames=8, stride_frames=8, top1="76.5 % on Kinetics-400", source="mmaction2"),
    "toy": Published(),
}
SPECS: dict[str, BackboneSpec] = {
    f"slowonly_{name}": spec(slowonly, size, frames="convolve", sampling="clip", published=PUBLISHED[name])
    for name, size in SIZES.items()
}
