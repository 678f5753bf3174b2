"""Names of the same weights in other code bases, as substitutions on ours. Runs anywhere.

Note that the official code's `level_fusion_op2` is the top-down pyramid and `level_fusion_op` the bottom-up one;
mmaction2 numbers them 1 and 2. Both have one auxiliary head, on the second-highest level. mmaction2 wraps the first
convolution of a shifted block (`.net`). Before 2020-04-30 the official auxiliary convolution was in a list (`convs.0`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Layout = Literal["tpn_ray", "mmaction2", "official", "resnet2d"]

Substitutions = tuple[tuple[str, str], ...]

BLOCK = r"^backbone\.stages\.res(\d)\.(\d+)\."

MMACTION2: Substitutions = (
    (r"^backbone\.stem\.", "backbone.conv1."),
    (BLOCK + r"shortcut\.", r"backbone.layer<\1>.\2.downsample."),
    (BLOCK, r"backbone.layer<\1>.\2."),
    (r"^neck\.spatial\.", "neck.spatial_modulation.spatial_modulation."),
    (r"^neck\.temporal\.(\d)\.", r"neck.temporal_modulation_ops.\1.conv.conv."),
    (r"^neck\.down\.(\d)\.", r"neck.downsample_ops.\1.conv.conv."),
    (r"^neck\.level_fusion\.top_down\.", "neck.level_fusion_1."),
    (r"^neck\.level_fusion\.bottom_up\.", "neck.level_fusion_2."),
    (r"\.mix\.(\d)\.", r".downsamples.\1.conv."),
    (r"\.fuse\.", ".fusion_conv."),
    (r"^auxiliary\.top\.deepen\.", "neck.aux_head.conv."),
    (r"^auxiliary\.top\.head\.linear\.", "neck.aux_head.fc."),
    (r"^head\.linear\.", "cls_head.fc_cls."),
    (r"\.norm\.", ".bn."),
)

OFFICIAL: Substitutions = (
    (r"^backbone\.stem\.conv\.", "backbone.conv1."),
    (r"^backbone\.stem\.norm\.", "backbone.bn1."),
    (BLOCK + r"conv(\d)\.conv\.", r"backbone.layer<\1>.\2.conv\3."),
    (BLOCK + r"conv(\d)\.norm\.", r"backbone.layer<\1>.\2.bn\3."),
    (BLOCK + r"shortcut\.conv\.", r"backbone.layer<\1>.\2.downsample.0."),
    (BLOCK + r"shortcut\.norm\.", r"backbone.layer<\1>.\2.downsample.1."),
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

SIGNS: dict[str, Layout] = {
    "backbone.stem.conv.weight": "tpn_ray",
    "backbone.conv1.conv.weight": "mmaction2",
    "backbone.conv1.weight": "official",
    "layer1.0.conv1.weight": "resnet2d",
}
"""An entry that one layout has and no other."""


def detect(keys: Iterable[str]) -> Layout | None:
    """Return the layout that these names belong to; None if unknown."""
    present = set(keys)
    return next((layout for sign, layout in SIGNS.items() if sign in present), None)


def names_in(layout: Layout, key: str, *, top_auxiliary: int) -> tuple[str, ...]:
    """Return the possible names of our entry `key` in a layout; empty if it has no counterpart there.

    `top_auxiliary` is the index of the auxiliary head on the second-highest level, the only one that others have.
    """
    if layout == "tpn_ray":
        return (key,)
    key = key.replace(f"auxiliary.{top_auxiliary}.", "auxiliary.top.", 1)
    if layout == "mmaction2":
        name = substitute(MMACTION2, key)
        return (
            (name, name.replace(".conv1.conv.", ".conv1.conv.net.")) if name.startswith("backbone.layer") else (name,)
        )
    name = substitute(OFFICIAL, key)
    if layout == "official":
        return (name, name.replace(".aux_head.convs.", ".aux_head.convs.0."))
    return (name.removeprefix("backbone."),) if name.startswith("backbone.") else ()


def substitute(substitutions: Substitutions, key: str) -> str:
    """Apply the substitutions in order; <5> stands for the layer that we call res5 and others call layer4."""
    for pattern, replacement in substitutions:
        key = re.sub(pattern, replacement, key)
    return re.sub(r"<(\d)>", lambda match: str(int(match[1]) - 1), key)
