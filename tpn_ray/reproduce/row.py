"""What a row of a table is, and a table. Plain data; runs anywhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tpn_ray import recipes
from tpn_ray.recipe import Recipe, replace_fields

Scale = Literal["toy", "full"]
Changes = dict[str, Any]
"""Fields of a recipe, by their dotted names, and their new values."""

COLORS = ("brightness", "contrast", "saturation", "hue")
FLOW: Changes = {"clip.modality": "flow", **{f"augment.{name}": 0.0 for name in COLORS}}
"""Changes that show a network optical flow."""


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One row of a table."""

    name: str
    paper: str = "-"
    """The paper's result (top-1, top-5), as printed there; - if it reports none."""
    elsewhere: str = ""
    """What another code base measured with the same recipe."""
    base: str = "k400_r50_8x8"
    """Recipe at full scale."""
    toy_base: str = "toy"
    """Recipe at toy scale."""
    both: Changes = field(default_factory=dict)
    """Fields changed at both scales."""
    full: Changes = field(default_factory=dict)
    """Fields also changed at full scale."""
    toy: Changes = field(default_factory=dict)
    """Fields also changed at toy scale."""
    against: str = ""
    """Name of the row that this one is compared with; empty: the table's baseline."""
    only_full: bool = False
    """Whether the toy has nothing of its own for this row, such as a deeper network. It is then left out at toy scale
    unless named."""
    fuses: tuple[str, str] | tuple[()] = ()
    """Names of two rows above, whose scores are averaged: such a row is not trained, and has no fields."""

    @property
    def needs_flow(self) -> bool:
        """Whether it is trained on optical flow."""
        return FLOW.items() <= self.both.items()

    def recipe(self, scale: Scale, seed: int) -> Recipe:
        """Return the recipe to train."""
        base, changes = (self.toy_base, self.toy) if scale == "toy" else (self.base, self.full)
        return replace_fields(recipes.recipe(base), {**self.both, **changes, "loop.seed": seed})


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows that are trained on the same data and tested in the same views."""

    title: str
    data: str = "Kinetics-400"
    """What the paper trained on."""
    views: str = "10x3 random"
    """Views at full scale; a toy's are 1x1."""
    rows: tuple[TableRow, ...]
    toy_shows: str
    """What the toy can and cannot show here."""

    baseline_name: str = ""
    """Name of the row that the others are compared with; empty: the first."""

    def named(self, name: str) -> TableRow:
        """Return the row of a name."""
        return next(row for row in self.rows if row.name == name)

    @property
    def baseline(self) -> TableRow:
        """The row that the others are compared with."""
        return next(row for row in self.rows if self.baseline_name in ("", row.name))

    def baseline_of(self, row: TableRow) -> TableRow:
        """Return the row that a row is compared with; itself if it is a baseline."""
        return next(one for one in self.rows if one.name == (row.against or self.baseline.name))

    @property
    def one_baseline(self) -> bool:
        """Whether all rows are compared with the same one."""
        return not any(row.against for row in self.rows)
