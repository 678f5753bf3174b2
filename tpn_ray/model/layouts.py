"""Names of the same weights in other code bases, as substitutions on ours. Runs anywhere.

Every backbone names its own part (`BackboneSpec.names`); pyramid and heads are named here. Note that the official
code's `level_fusion_op2` is the top-down pyramid and `level_fusion_op` the bottom-up one; mmaction2 numbers them 1 and
2. Both have one auxiliary head, on the second-highest level. mmaction2 wraps the first convolution of a shifted block
(`.net`). Before 2020-04-30 the official auxiliary convolution was in a list (`convs.0`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from tpn_ray.model.backbones.spec import BackboneSpec, Substitutions

OURS = "tpn_ray"

MMACTION2: Substitutions = (
    (r"^neck\.spatial\.", "neck.spatial_modulation.spatial_modulation."),
    (r"^neck\.temporal\.(\d)\.", r"neck.temporal_modulation_ops.\1.conv.conv."),
    (r"^neck\.down\.(\d)\.", r"neck.downsample_ops.\1.conv.conv."),
    (r"^neck\.level_fusion\.top_down\.", "neck.level_fusion_1."),
    (r"^neck\.level_fusion\.bottom_up\.", "neck.level_fusion_2."),
    (r"\.mix\.(\d)\.", r".downsamples.\1.conv."),
    (r"\.fuse\.", ".fusion_conv."),
    (r"^auxiliary\.top\.deepen\.", "neck.aux_head.conv."),
    (r"^auxiliary\.top\.head\.linear\.", "neck.aux_head.fc."),
    (r"^head\.(?:linear|frame)\.", "cls_head.fc_cls."),
    (r"^head\.relations\.(\d)\.mix\.", r"cls_head.consensus.fc_fusion_scales.\1.1."),
    (r"^head\.relations\.(\d)\.linear\.", r"cls_head.consensus.fc_fusion_scales.\1.3."),
    (r"\.norm\.", ".bn."),
)

OFFICIAL: Substitutions = (
    (r"^neck\.spatial\.(\d)\.(\d)\.norm\.", r"necks.spatial_modulation.spatial_modulation.\1.\2.bn."),
    (r"^neck\.spatial\.", "necks.spatial_modulation.spatial_modulation."),
    (r"^neck\.temporal\.(\d)\.", r"necks.temporal_modulation_ops.\1.conv."),
    (r"^neck\.down\.(\d)\.", r"necks.downsampling_ops.\1.conv."),
    (r"^neck\.level_fusion\.top_down\.", "necks.level_fusion_op2."),
    (r"^neck\.level_fusion\.bottom_up\.", "necks.level_fusion_op."),
    (r"\.mix\.(\d)\.", r".ops.\1."),
    (r"\.fuse\.conv\.", ".fusion_conv.0."),
    (r"\.fuse\.norm\.", ".fusion_conv.1."),
    (r"^neck\.pyramid_fusion\.conv\.", "necks.pyramid_fusion_op.0."),
    (r"^neck\.pyramid_fusion\.norm\.", "necks.pyramid_fusion_op.1."),
    (r"^auxiliary\.top\.deepen\.conv\.", "necks.aux_head.convs.conv."),
    (r"^auxiliary\.top\.deepen\.norm\.", "necks.aux_head.convs.bn."),
    (r"^auxiliary\.top\.head\.linear\.", "necks.aux_head.fc."),
    (r"^head\.linear\.", "cls_head.fc_cls."),
)

HEADS: dict[str, Substitutions] = {"mmaction2": MMACTION2, "official": OFFICIAL}
"""Names of pyramid and heads, in the code bases that have them."""


def detect(spec: BackboneSpec, keys: Iterable[str], present: Collection[str]) -> str | None:
    """Return the layout that has most of our `keys` among the names that are present; None if no name is known."""
    counts = {
        layout: sum(any(name in present for name in names_in(layout, spec, key, top_auxiliary=0)) for key in keys)
        for layout in (OURS, *spec.names)
    }
    best = max(counts, key=lambda layout: counts[layout])
    return best if counts[best] else None


def names_in(layout: str, spec: BackboneSpec, key: str, *, top_auxiliary: int) -> tuple[str, ...]:
    """Return the possible names of our entry `key` in a layout; empty if it has no counterpart there.

    `top_auxiliary` is the index of the auxiliary head on the second-highest level, the only one that others have.
    """
    if layout == OURS:
        return (key,)
    part = key.partition(".")[0]
    if part == "backbone":
        name = substitute(spec.names[layout], key.removeprefix("backbone."))
        if layout not in HEADS:
            return (name,)
        name = f"backbone.{name}"
        # mmaction2 wraps the convolutions before which it shifts
        return (name, name.replace(".conv1.conv.", ".conv1.conv.net.")) if spec.frames == "shift" else (name,)
    if layout not in HEADS:
        name = substitute(spec.names[layout], key)
        return (name,) if part == "head" and name != key else ()
    if part == "head" and (name := substitute(spec.names[layout], key)) != key:
        return (name,)
    name = substitute(HEADS[layout], key.replace(f"auxiliary.{top_auxiliary}.", "auxiliary.top.", 1))
    return (name, name.replace(".aux_head.convs.", ".aux_head.convs.0."))


def substitute(substitutions: Substitutions, key: str) -> str:
    """Apply the substitutions in order; <5> stands for the layer that we call res5 and others call layer4."""
    for pattern, replacement in substitutions:
        key = re.sub(pattern, replacement, key)
    return re.sub(r"<(\d)>", lambda match: str(int(match[1]) - 1), key)
