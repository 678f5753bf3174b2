"""The backbones by name. To add one, write a file with `SPECS` beside the others, and name it here.

Names end in the size; those of toys are for tests and first experiments.
"""

from __future__ import annotations

import difflib

from tpn_ray.errors import ConfigError
from tpn_ray.model.backbones import (
    c3d,
    csn,
    eco,
    i3d,
    inception_i3d,
    r2plus1d,
    resnet2d,
    s3d,
    slowfast,
    slowonly,
    stc,
    timm2d,
    trn,
    x3d,
)  # fmt: skip
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
    **s3d.SPECS,
    **inception_i3d.SPECS,
    **trn.SPECS,
    **eco.SPECS,
    **stc.SPECS,
}


def backbone_spec(name: str) -> BackboneSpec:
    """Return the spec of a backbone; raise ConfigError if there is none of this name."""
    if name in BACKBONES:
        return BACKBONES[name]
    if name.startswith((timm2d.APART, timm2d.SHIFTED)):
        return timm2d.timm_spec(name)
    near = ", ".join(difflib.get_close_matches(name, BACKBONES, n=5, cutoff=0.3))
    raise ConfigError(
        f"unknown backbone {name!r}; nearest: {near or 'none'}. `python jobs/plan.py --models` lists all; networks of "
        "timm are timm/<model> and timm_tsm/<model>"
    )
