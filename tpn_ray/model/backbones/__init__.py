"""The backbones by name. To add one, write a file with `SPECS` beside the others, and name it here.

Names end in the size; those of toys are for tests and first experiments.
"""

from __future__ import annotations

from tpn_ray.model.backbones import inception_i3d, resnet2d, s3d, slowonly
from tpn_ray.model.backbones.spec import BackboneSpec

BACKBONES: dict[str, BackboneSpec] = {
    **slowonly.SPECS,
    **resnet2d.SPECS,
    **s3d.SPECS,
    **inception_i3d.SPECS,
}
