"""The backbones by name. To add one, write a file with `SPECS` beside the others, and name it here.

Names end in the size; those of toys are for tests and first experiments.
"""

from __future__ import annotations

from tpn_ray.model.backbones import c3d, csn, i3d, r2plus1d, resnet2d, slowfast, slowonly, x3d
from tpn_ray.model.backbones.spec import BackboneSpec

BACKBONES: dict[str, BackboneSpec] = {
    **slowonly.SPECS,
    **resnet2d.SPECS,
    **i3d.SPECS,
    **slowfast.SPECS,
    **csn.SPECS,
    **x3d.SPECS,
    **r2plus1d.SPECS,
    **c3d.SPECS,
}
