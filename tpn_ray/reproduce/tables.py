"""TABLES: the tables of the paper, each row as a recipe. Plain data; runs anywhere.

A row is a base recipe with some fields changed, once for the paper's scale and once for the toy. Where the paper and
the published code disagree, the paper decides here: flow `parallel`, alpha as in its text. Only its schedule (learning
rate drops at epochs 100 and 125 of 150) is not used: the recipes follow the published one (75 and 125).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tpn_ray import recipes
from tpn_ray.errors import ConfigError
from tpn_ray.names import no_such
from tpn_ray.recipe import Recipe, replace_fields

Scale = Literal["toy", "full"]

PLAIN: dict[str, Any] = {"model.neck": "none", "loss.lambdas": ()}
"""Changes that leave the backbone alone, without the pyramid."""
PARALLEL: dict[str, Any] = {"model.flow": "parallel"}
SEGMENTS: dict[str, Any] = {"clip.sampling": "segments", "clip.stride_frames": 1}
TSN: dict[str, Any] = {**SEGMENTS, "model.backbone": "tsn_toy"}
TSM: dict[str, Any] = {**SEGMENTS, "model.backbone": "tsm_toy"}
FLOW: dict[str, Any] = {
    "clip.modality": "flow",
    **{f"augment.{name}": 0.0 for name in ("brightness", "contrast", "saturation", "hue")},
}
"""Changes that show a network optical flow."""
NOT_AT_HAND = "not at hand"
"""In place of a result that the paper prints and that could not be read here."""


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One row of a table."""

    name: str
    paper: str
    """The paper's result (top-1, top-5), as printed there; - if it reports none."""
    elsewhere: str = ""
    """What another code base measured with the same recipe."""
    base: str = "k400_r50_8x8"
    """Recipe at full scale."""
    full: dict[str, Any] = field(default_factory=dict)
    """Fields changed from `base`."""
    against: str = ""
    """Name of the row that this one is compared with; empty: the table's baseline."""
    only_full: bool = False
    """Whether the toy has nothing of its own for this row, such as a deeper network. It is then left out at toy scale
    unless named."""
    toy_base: str = "toy"
    """Recipe at toy scale."""
    toy: dict[str, Any] = field(default_factory=dict)
    """Fields changed from `toy_base`."""
    fuses: tuple[str, str] | tuple[()] = ()
    """Names of two rows above, whose scores are averaged: such a row is not trained, and has no fields."""

    @property
    def needs_flow(self) -> bool:
        """Whether it is trained on optical flow."""
        return FLOW.items() <= self.full.items()

    def at_full_scale(self) -> TableRow:
        """Return the row for full scale only."""
        return replace(self, only_full=True)

    def recipe(self, scale: Scale, seed: int) -> Recipe:
        """Return the recipe to train."""
        changed = {**(self.toy if scale == "toy" else self.full), "loop.seed": seed}
        return replace_fields(recipes.recipe(self.toy_base if scale == "toy" else self.base), changed)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows that are trained on the same data and tested in the same views."""

    title: str
    data: str
    """What the paper trained on."""
    views: str
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


KINETICS, THREE_CROPS = "Kinetics-400", "10x3 random"
PLAIN_ELSEWHERE = "76.45, 92.55 (mmaction2 1.x)"
TPN_ELSEWHERE = "76.74, 92.57 (mmaction2 1.x, cascade, alpha 8,8)"
"""On Kinetics-400 with R50 8x8 from ImageNet. For the official weights, which are cascade too, mmaction2 measured
75.49, 92.05."""


def comparator(
    backbone: str,
    name: str,
    paper: str,
    *,
    toy: str,
    clip: tuple[int, int] = (32, 2),
    modality: str = "rgb",
) -> TableRow:
    """Return the row of another method's network, without the pyramid, with the clips that the paper states."""
    frames, stride_frames = clip
    changes = {**PLAIN, "model.backbone": backbone, "clip.frames": frames, "clip.stride_frames": stride_frames}
    shown = FLOW if modality == "flow" else {}
    return TableRow(name=name, paper=paper, full={**changes, **shown}, toy={**PLAIN, "model.backbone": toy, **shown})


BACKBONE = TableRow(name="none (I3D-50)", paper="74.9, 91.9", elsewhere=PLAIN_ELSEWHERE, full=PLAIN, toy=PLAIN)


def table2() -> Table:
    changes = {**PARALLEL, "model.alpha": (16, 32)}
    return Table(
        title="TPN on Kinetics-400, 32 frames",
        data=KINETICS,
        views=THREE_CROPS,
        rows=(
            comparator("r2plus1d_r34", "R(2+1)D (RGB and flow)", "73.9, 90.9", toy="r2plus1d_toy", clip=(16, 4)),
            comparator("inception_i3d", "I3D", "71.6, 90.0", toy="inception_i3d_toy", clip=(16, 4)),
            comparator(
                "inception_i3d", "I3D (flow)", NOT_AT_HAND, toy="inception_i3d_toy", clip=(16, 4), modality="flow"
            ),
            TableRow(name="Two-stream I3D", paper=NOT_AT_HAND, fuses=("I3D", "I3D (flow)")),
            comparator("s3dg", "S3D-G (64 frames)", "77.2, 93.0", toy="s3dg_toy", clip=(64, 1)),
            comparator("stc_x101", "STC-X101", "68.7, 88.5", toy="stc_toy"),
            comparator("nonlocal_r50", "Nonlocal-R50", "76.5, 92.6", toy="nonlocal_toy"),
            comparator("nonlocal_r101", "Nonlocal-R101", "77.7, 93.3", toy="nonlocal_toy").at_full_scale(),
            comparator("slowfast_r50_8x8", "SlowFast-R50", "77.0, 92.6", toy="slowfast_toy"),
            comparator("slowfast_r101_8x8", "SlowFast-R101", "77.9, 93.2", toy="slowfast_toy").at_full_scale(),
            comparator("ipcsn_r101", "CSN-101", "76.7, 92.3", toy="ipcsn_toy"),
            comparator("ipcsn_r152", "CSN-152", "77.8, 92.8", toy="ircsn_toy"),
            TableRow(
                name="TPN-R50 32x2",
                paper="77.7, 93.3",
                base="k400_r50_32x2",
                full=changes,
                toy={**PARALLEL, "clip.frames": 32, "clip.stride_frames": 2, "model.alpha": (2, 4)},
            ),
            TableRow(name="TPN-R101 32x2", paper="78.9, 93.9", base="k400_r101_32x2", full=changes, toy=PARALLEL),
        ),
        toy_shows="that each network trains on clips whose class is their tempo. The toys have one depth each, so R101 "
        "rows are left out, the toy of CSN-152 is the other kind (ir), and the second row of TPN is 16 frames (16x4). "
        "R(2+1)D is RGB alone. Two-stream I3D is the mean of I3D's scores of RGB and of flow",
        baseline_name="TPN-R50 32x2",
    )


def table3() -> Table:
    tsn = {"model.flow": "parallel"}
    return Table(
        title="2D backbones on Kinetics-400, 8 segments, ten-crop",
        data=KINETICS,
        views="ten_crop",
        rows=(
            TableRow(name="TSN-50", paper="69.9", base="k400_tsn_r50", full=PLAIN, toy={**TSN, **PLAIN}),
            TableRow(
                name="TSM-50",
                paper="72.8",
                base="k400_tsn_r50",
                full={**PLAIN, "model.backbone": "tsm_r50"},
                toy={**TSM, **PLAIN},
            ),
            TableRow(name="TSN-50 + TPN", paper="73.5", base="k400_tsn_r50", full=tsn, toy={**TSN, **PARALLEL}),
        ),
        toy_shows="what the pyramid adds where only motion reveals the class: TSN alone sees single frames and must "
        "stay near chance (12.5 %)",
    )


def table4() -> Table:
    return Table(
        title="Something-Something (V1 / V2 by the data given), 8 segments, one center view",
        data="Something-Something V1 or V2",
        views="1x1",
        rows=(
            TableRow(
                name="TRN multi-scale",
                paper="V1 38.9, V2 48.8",
                elsewhere="V1 31.62 (mmaction2, R50)",
                base="sth_tsn_r50",
                full={**PLAIN, "model.backbone": "trn_r50"},
                toy={**SEGMENTS, **PLAIN, "model.backbone": "trn_toy", "clip.frames": 8},
            ),
            TableRow(
                name="ECO",
                paper="V1 39.6",
                base="sth_tsn_r50",
                full={**PLAIN, "model.backbone": "eco"},
                toy={**SEGMENTS, **PLAIN, "model.backbone": "eco_toy"},
            ),
            TableRow(name="TSN-50", paper="V1 19.7, V2 30.0", base="sth_tsn_r50", full=PLAIN, toy={**TSN, **PLAIN}),
            TableRow(
                name="TSM-50",
                paper="V1 45.6, V2 59.1",
                elsewhere="V1 45.58 (mmaction2 0.x)",
                base="sthv1_tsm_r50",
                full=PLAIN,
                toy={**TSM, **PLAIN},
            ),
            TableRow(
                name="TSN-50 + TPN",
                paper="V1 40.6, V2 55.2",
                base="sth_tsn_r50",
                full=PARALLEL,
                toy={**TSN, **PARALLEL},
            ),
            TableRow(
                name="TSM-50 + TPN",
                paper="V1 49.0, V2 62.0",
                elsewhere="V1 51.87 (mmaction2 1.x, 2x3 views)",
                base="sthv1_tsm_r50",
                full=PARALLEL,
                toy={**TSM, **PARALLEL},
            ),
        ),
        toy_shows="the same as table 3, for shifted features too",
        baseline_name="TSN-50",
    )


def table5() -> Table:
    def row(name: str, paper: str, changes: dict[str, Any], against: str = "") -> TableRow:
        return TableRow(
            name=name, paper=paper, base="epic_tsn_r50", full=changes, toy={**TSN, **changes}, against=against
        )

    return Table(
        title="EPIC-Kitchens, verbs and nouns",
        data="EPIC-Kitchens (verb and noun)",
        views="ten_crop",
        rows=(
            row("TSN", "verb 48.2, noun 39.7", PLAIN),
            row("TSN (flow)", NOT_AT_HAND, {**PLAIN, **FLOW}),
            TableRow(name="TSN (fusion)", paper=NOT_AT_HAND, fuses=("TSN", "TSN (flow)")),
            row("TSN + TPN", "verb 61.1, noun 41.3", PARALLEL),
            row("TSN + TPN (flow)", "-", {**PARALLEL, **FLOW}, against="TSN (flow)"),
            TableRow(
                name="TSN + TPN (fusion)",
                paper="-",
                fuses=("TSN + TPN", "TSN + TPN (flow)"),
                against="TSN (fusion)",
            ),
        ),
        toy_shows="the gain in what only motion reveals (verbs are tempos) beside what a single frame shows (nouns are "
        "forms), and what flow adds to RGB. Its data: jobs/toy.py FOLDER --kind kitchen, then jobs/prepare.py --format "
        "epic --flow",
    )


def table6a() -> Table:
    def row(name: str, paper: str, levels: tuple[int, ...], alpha: tuple[int, ...], toy: tuple[int, ...]) -> TableRow:
        changes = {**PARALLEL, "model.levels": levels, "loss.lambdas": (0.5,) * (len(levels) - 1)}
        full, small = ({**changes, "model.alpha": rates} for rates in (alpha, toy))
        elsewhere = TPN_ELSEWHERE if levels == (4, 5) else ""
        return TableRow(name=name, paper=paper, elsewhere=elsewhere, full=full, toy=small)

    single = {**PARALLEL, "model.levels": (5,), "model.rates": (1, 2, 4, 8), "model.alpha": (1,) * 4}
    single["loss.lambdas"] = ()
    return Table(
        title="Sources of the pyramid's features (8x8)",
        data=KINETICS,
        views=THREE_CROPS,
        rows=(
            BACKBONE,
            row("res{2,3,4,5}", "74.6, 91.8", (2, 3, 4, 5), (1, 2, 4, 8), (1, 1, 1, 2)),
            row("res{3,4,5}", "74.9, 92.1", (3, 4, 5), (2, 4, 8), (1, 1, 2)),
            row("res{4,5}", "76.1, 92.5", (4, 5), (4, 8), (1, 2)),
            TableRow(name="res{5}", paper="75.7, 92.3", full=single, toy=single),
        ),
        toy_shows="whether a pyramid beats its backbone where only tempo reveals the class; the order among pyramids "
        "is within the noise of so few videos",
    )


def table6b() -> Table:
    def row(name: str, paper: str, **parts: bool) -> TableRow:
        changes: dict[str, Any] = {**PARALLEL}
        if not parts["head"]:
            changes |= {"model.auxiliary_heads": False, "loss.lambdas": ()}
        if not parts["flow"]:
            changes["model.flow"] = "isolation"
        changes |= {"model.spatial_modulation": parts["spatial"], "model.temporal_modulation": parts["temporal"]}
        return TableRow(name=name, paper=paper, full={**changes, "model.alpha": (4, 8)}, toy=changes)

    return Table(
        title="Parts of the pyramid (8x8). The paper's rows in between: 74.6, 75.2, 75.4, 75.9, 75.6",
        data=KINETICS,
        views=THREE_CROPS,
        rows=(
            BACKBONE,
            row("all", "76.1", head=True, spatial=True, temporal=True, flow=True),
            row("without head", "-", head=False, spatial=True, temporal=True, flow=True),
            row("without spatial", "-", head=True, spatial=False, temporal=True, flow=True),
            row("without temporal", "-", head=True, spatial=True, temporal=False, flow=True),
            row("without flow", "-", head=True, spatial=True, temporal=True, flow=False),
        ),
        toy_shows="which part carries the gain on tempo alone. The tick marks of the paper's table could not be read "
        "from its text, so that only its first and its best row are given to a row here",
    )


def table6c() -> Table:
    def row(flow: str, paper: str) -> TableRow:
        changes, elsewhere = {"model.flow": flow}, TPN_ELSEWHERE if flow == "cascade" else ""
        return TableRow(
            name=flow, paper=paper, elsewhere=elsewhere, full={**changes, "model.alpha": (4, 8)}, toy=changes
        )

    return Table(
        title="Information flow (8x8)",
        data=KINETICS,
        views=THREE_CROPS,
        rows=(
            BACKBONE,
            row("isolation", "75.4, 92.4"),
            row("bottom_up", "75.8, 92.3"),
            row("top_down", "75.7, 92.3"),
            row("cascade", "75.9, 92.3"),
            row("parallel", "76.1, 92.5"),
        ),
        toy_shows="whether each flow beats the backbone; the paper's flows differ by 0.7 points, far less than a toy "
        "can tell apart",
    )


def table6d() -> Table:
    rows = []
    paper = {
        ("r50", "8x8"): ("74.9", "76.1"),
        ("r50", "16x4"): ("76.1", "77.3"),
        ("r50", "32x2"): ("75.7", "77.7"),
        ("r101", "8x8"): ("76.0", "77.2"),
        ("r101", "16x4"): ("77.0", "78.1"),
        ("r101", "32x2"): ("77.4", "78.9"),
    }
    elsewhere = {("r50", "8x8"): (PLAIN_ELSEWHERE, TPN_ELSEWHERE)}
    for (depth, frames), (without, with_tpn) in paper.items():
        t, stride = (int(part) for part in frames.split("x"))
        base = f"k400_{depth}_{frames}"
        theirs = elsewhere.get((depth, frames), ("", ""))
        small = {"clip.frames": t, "clip.stride_frames": stride}
        rows += [
            TableRow(
                name=f"{depth} {frames}",
                paper=without,
                elsewhere=theirs[0],
                base=base,
                full=PLAIN,
                only_full=depth == "r101",
                toy={**small, **PLAIN},
            ),
            TableRow(
                name=f"{depth} {frames} + TPN",
                paper=with_tpn,
                elsewhere=theirs[1],
                base=base,
                full={**PARALLEL, "model.alpha": (t // 2, t)},
                only_full=depth == "r101",
                toy={**small, **PARALLEL},
            ),
        ]
    return Table(
        title="Input frames",
        data=KINETICS,
        views=THREE_CROPS,
        rows=tuple(rows),
        toy_shows="the gain at each sampling; the toy has one depth, and so no rows for r101",
    )


def backbones() -> Table:
    """Return the claim of the paper's title, for backbones that it does not try: each alone, and with the pyramid."""
    rows = []
    for name, full in (
        ("i3d", "i3d_r50"),
        ("slowfast", "slowfast_r50_4x16"),
        ("r2plus1d", "r2plus1d_r34"),
        ("ircsn", "ircsn_r50"),
        ("s3d", "s3d"),
        ("tsm", "tsm_r50"),
    ):
        small: dict[str, Any] = {"model.backbone": f"{name}_toy"}
        large: dict[str, Any] = {"model.backbone": full, "clip.frames": 32, "clip.stride_frames": 2}
        if name == "tsm":
            small, large = TSM, {**SEGMENTS, "model.backbone": full}
        rows += [
            TableRow(name=name, paper="-", full={**large, **PLAIN}, toy={**small, **PLAIN}, against=name),
            TableRow(
                name=f"{name} + TPN",
                paper="-",
                full={**large, **PARALLEL, "model.alpha": (4, 8)},
                toy={**small, **PARALLEL},
                against=name,
            ),
        ]
    return Table(
        title="Backbones without and with the pyramid",
        data=KINETICS,
        views="1x1",
        rows=tuple(rows),
        toy_shows="what the pyramid adds to each small backbone where only the tempo reveals the class. Backbones that "
        "stride in time lose some of the tempo before the pyramid sees it",
    )


# --- what the figures are made of


FRAMES = TableRow(name="frames", paper="", base="k400_tsn_r50", full=PLAIN, toy_base="toy_frames")
"""A classifier of single frames, which measures tempo."""
TPN = TableRow(name="TPN", paper="", full={**PARALLEL, "model.alpha": (4, 8)}, toy=PARALLEL)

FIGURES = {"figure1": (FRAMES,), "figure4": (FRAMES, BACKBONE, TPN), "figure5": (BACKBONE, TPN)}
"""The networks behind each figure of the paper. `jobs/reproduce.py` trains and analyzes them like jobs/tempo.py."""


TOY_FIGURES = {
    "figure1": "that classes of synthetic actions differ in how much their tempo varies, as designed",
    "figure4": "how a gain is plotted against the variance of tempo; color reveals the class: little is left to gain",
    "figure5": "how far each network depends on the tempo it was trained at. Where the class is the tempo (jobs/toy.py "
    "without --kind) a video played faster is one of another class, and a network that sees tempo has to fall; where "
    "tempo is only how an action is done (--kind actions) it should not",
}


def figure(name: str) -> Table:
    """Return the networks of a figure, to be trained like a table's rows."""
    return Table(
        title=f"Figure {name.removeprefix('figure')}",
        data=KINETICS,
        views="1x1",
        rows=FIGURES[name],
        toy_shows=TOY_FIGURES[name],
    )


TABLES: dict[str, Callable[[], Table]] = {
    "2": table2,
    "3": table3,
    "4": table4,
    "5": table5,
    "6a": table6a,
    "6b": table6b,
    "6c": table6c,
    "6d": table6d,
    "backbones": backbones,
}


def table(name: str) -> Table:
    """Return the table with the given name."""
    if name not in TABLES:
        raise ConfigError(no_such("table", name, [*TABLES, *FIGURES]))
    return TABLES[name]()
