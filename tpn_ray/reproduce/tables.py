"""TABLES: the tables of the paper, each row as a recipe. Plain data; runs anywhere.

A row is a base recipe with some fields changed, once for the paper's scale and once for the toy. Where the paper and
the published code disagree, the paper decides here: flow `parallel`, alpha as in its text. Only its schedule (learning
rate drops at epochs 100 and 125 of 150) is not used: the recipes follow the published one (75 and 125).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tpn_ray.errors import ConfigError
from tpn_ray.names import no_such
from tpn_ray.reproduce.row import FLOW, Changes, Table, TableRow

PLAIN: Changes = {"model.neck": "none", "loss.lambdas": ()}
"""Changes that leave the backbone alone, without the pyramid."""
PARALLEL: Changes = {"model.flow": "parallel"}
SEGMENTS: Changes = {"clip.sampling": "segments", "clip.stride_frames": 1}
TSN: Changes = {**SEGMENTS, "model.backbone": "tsn_toy"}
TSM: Changes = {**SEGMENTS, "model.backbone": "tsm_toy"}
NOT_AT_HAND = "not at hand"
"""In place of a result that the paper prints and that could not be read here."""

PLAIN_ELSEWHERE = "76.45, 92.55 (mmaction2 1.x)"
TPN_ELSEWHERE = "76.74, 92.57 (mmaction2 1.x, cascade, alpha 8,8)"
"""On Kinetics-400 with R50 8x8 from ImageNet. For the official weights, which are cascade too, mmaction2 measured
75.49, 92.05."""
BACKBONE = TableRow(name="none (I3D-50)", paper="74.9, 91.9", elsewhere=PLAIN_ELSEWHERE, both=PLAIN)


def comparator(
    backbone: str,
    name: str,
    paper: str,
    toy: str,
    *,
    clip: tuple[int, int] = (32, 2),
    dropout: float = 0.5,
    **more: Any,
) -> TableRow:
    """Return the row of another method's network, without the pyramid, with the clips that the paper states."""
    full: Changes = {"clip.frames": clip[0], "clip.stride_frames": clip[1], "model.dropout": dropout}
    full |= {"model.backbone": backbone}
    return TableRow(name=name, paper=paper, full=full, toy={"model.backbone": toy}, **{"both": PLAIN, **more})


TABLE_2 = Table(
    title="TPN on Kinetics-400, 32 frames",
    rows=(
        comparator("r2plus1d_r34", "R(2+1)D (RGB and flow)", "73.9, 90.9", "r2plus1d_toy", clip=(16, 4)),
        comparator("inception_i3d", "I3D", "71.6, 90.0", "inception_i3d_toy", clip=(16, 4)),
        comparator(
            "inception_i3d", "I3D (flow)", NOT_AT_HAND, "inception_i3d_toy", clip=(16, 4), both={**PLAIN, **FLOW}
        ),
        TableRow(name="Two-stream I3D", paper=NOT_AT_HAND, fuses=("I3D", "I3D (flow)")),
        comparator("s3dg", "S3D-G (64 frames)", "77.2, 93.0", "s3dg_toy", clip=(64, 1), dropout=0.2),
        comparator("stc_x101", "STC-X101", "68.7, 88.5", "stc_toy"),
        comparator("nonlocal_r50", "Nonlocal-R50", "76.5, 92.6", "nonlocal_toy"),
        comparator("nonlocal_r101", "Nonlocal-R101", "77.7, 93.3", "nonlocal_toy", only_full=True),
        comparator("slowfast_r50_8x8", "SlowFast-R50", "77.0, 92.6", "slowfast_toy"),
        comparator("slowfast_r101_8x8", "SlowFast-R101", "77.9, 93.2", "slowfast_toy", only_full=True),
        comparator("ipcsn_r101", "CSN-101", "76.7, 92.3", "ipcsn_toy"),
        comparator("ipcsn_r152", "CSN-152", "77.8, 92.8", "ircsn_toy"),
        TableRow(
            name="TPN-R50 32x2",
            paper="77.7, 93.3",
            base="k400_r50_32x2",
            both=PARALLEL,
            full={"model.alpha": (16, 32)},
            toy={"clip.frames": 32, "clip.stride_frames": 2, "model.alpha": (2, 4)},
        ),
        TableRow(
            name="TPN-R101 32x2",
            paper="78.9, 93.9",
            base="k400_r101_32x2",
            both=PARALLEL,
            full={"model.alpha": (16, 32)},
        ),
    ),
    toy_shows="that each network trains on clips whose class is their tempo. The toys have one depth each, so R101 "
    "rows are left out, the toy of CSN-152 is the other kind (ir), and the second row of TPN is 16 frames (16x4). "
    "R(2+1)D is RGB alone. Two-stream I3D is the mean of I3D's scores of RGB and of flow",
    baseline_name="TPN-R50 32x2",
)

TABLE_3 = Table(
    title="2D backbones on Kinetics-400, 8 segments, ten-crop",
    views="ten_crop",
    rows=(
        TableRow(name="TSN-50", paper="69.9", base="k400_tsn_r50", both=PLAIN, toy=TSN),
        TableRow(
            name="TSM-50", paper="72.8", base="k400_tsn_r50", both=PLAIN, full={"model.backbone": "tsm_r50"}, toy=TSM
        ),
        TableRow(name="TSN-50 + TPN", paper="73.5", base="k400_tsn_r50", both=PARALLEL, toy=TSN),
    ),
    toy_shows="what the pyramid adds where only motion reveals the class: TSN alone sees single frames and must "
    "stay near chance (12.5 %)",
)

TABLE_4 = Table(
    title="Something-Something (V1 / V2 by the data given), 8 segments, one center view",
    data="Something-Something V1 or V2",
    views="1x1",
    rows=(
        TableRow(
            name="TRN multi-scale",
            paper="V1 38.9, V2 48.8",
            elsewhere="V1 31.62 (mmaction2, R50)",
            base="sth_tsn_r50",
            both=PLAIN,
            full={"model.backbone": "trn_r50", "model.dropout": 0.8},
            toy={**SEGMENTS, "model.backbone": "trn_toy", "clip.frames": 8},
        ),
        TableRow(
            name="ECO",
            paper="V1 39.6",
            base="sth_tsn_r50",
            both=PLAIN,
            full={"model.backbone": "eco"},
            toy={**SEGMENTS, "model.backbone": "eco_toy"},
        ),
        TableRow(name="TSN-50", paper="V1 19.7, V2 30.0", base="sth_tsn_r50", both=PLAIN, toy=TSN),
        TableRow(
            name="TSM-50",
            paper="V1 45.6, V2 59.1",
            elsewhere="V1 45.58 (mmaction2 0.x)",
            base="sthv1_tsm_r50",
            both=PLAIN,
            toy=TSM,
        ),
        TableRow(name="TSN-50 + TPN", paper="V1 40.6, V2 55.2", base="sth_tsn_r50", both=PARALLEL, toy=TSN),
        TableRow(
            name="TSM-50 + TPN",
            paper="V1 49.0, V2 62.0",
            elsewhere="V1 51.87 (mmaction2 1.x, 2x3 views)",
            base="sthv1_tsm_r50",
            both=PARALLEL,
            toy=TSM,
        ),
    ),
    toy_shows="the same as table 3, for shifted features too",
    baseline_name="TSN-50",
)


def kitchen(name: str, paper: str, changes: Changes, against: str = "") -> TableRow:
    return TableRow(name=name, paper=paper, base="epic_tsn_r50", both=changes, toy=TSN, against=against)


TABLE_5 = Table(
    title="EPIC-Kitchens, verbs and nouns",
    data="EPIC-Kitchens (verb and noun)",
    views="ten_crop",
    rows=(
        kitchen("TSN", "verb 48.2, noun 39.7", PLAIN),
        kitchen("TSN (flow)", NOT_AT_HAND, {**PLAIN, **FLOW}),
        TableRow(name="TSN (fusion)", paper=NOT_AT_HAND, fuses=("TSN", "TSN (flow)")),
        kitchen("TSN + TPN", "verb 61.1, noun 41.3", PARALLEL),
        kitchen("TSN + TPN (flow)", "-", {**PARALLEL, **FLOW}, against="TSN (flow)"),
        TableRow(name="TSN + TPN (fusion)", fuses=("TSN + TPN", "TSN + TPN (flow)"), against="TSN (fusion)"),
    ),
    toy_shows="the gain in what only motion reveals (verbs are tempos) beside what a single frame shows (nouns are "
    "forms), and what flow adds to RGB. Its data: jobs/toy.py FOLDER --kind kitchen, then jobs/prepare.py --format "
    "epic --flow",
)


def levels(paper: str, numbers: tuple[int, ...], alpha: tuple[int, ...], toy: tuple[int, ...]) -> TableRow:
    return TableRow(
        name=f"res{{{','.join(map(str, numbers))}}}",
        paper=paper,
        elsewhere=TPN_ELSEWHERE if numbers == (4, 5) else "",
        both={**PARALLEL, "model.levels": numbers, "loss.lambdas": (0.5,) * (len(numbers) - 1)},
        full={"model.alpha": alpha},
        toy={"model.alpha": toy},
    )


SINGLE: Changes = {"model.levels": (5,), "model.rates": (1, 2, 4, 8), "model.alpha": (1,) * 4, "loss.lambdas": ()}
TABLE_6A = Table(
    title="Sources of the pyramid's features (8x8)",
    rows=(
        BACKBONE,
        levels("74.6, 91.8", (2, 3, 4, 5), (1, 2, 4, 8), (1, 1, 1, 2)),
        levels("74.9, 92.1", (3, 4, 5), (2, 4, 8), (1, 1, 2)),
        levels("76.1, 92.5", (4, 5), (4, 8), (1, 2)),
        TableRow(name="res{5}", paper="75.7, 92.3", both={**PARALLEL, **SINGLE}),
    ),
    toy_shows="whether a pyramid beats its backbone where only tempo reveals the class; the order among pyramids "
    "is within the noise of so few videos",
)


def part(name: str, missing: Changes, paper: str = "-") -> TableRow:
    return TableRow(name=name, paper=paper, both={**PARALLEL, **missing}, full={"model.alpha": (4, 8)})


TABLE_6B = Table(
    title="Parts of the pyramid (8x8). The paper's rows in between: 74.6, 75.2, 75.4, 75.9, 75.6",
    rows=(
        BACKBONE,
        part("all", {}, "76.1"),
        part("without head", {"model.auxiliary_heads": False, "loss.lambdas": ()}),
        part("without spatial", {"model.spatial_modulation": False}),
        part("without temporal", {"model.temporal_modulation": False}),
        part("without flow", {"model.flow": "isolation"}),
    ),
    toy_shows="which part carries the gain on tempo alone. The tick marks of the paper's table could not be read "
    "from its text, so that only its first and its best row are given to a row here",
)

TABLE_6C = Table(
    title="Information flow (8x8)",
    rows=(
        BACKBONE,
        part("isolation", {"model.flow": "isolation"}, "75.4, 92.4"),
        part("bottom_up", {"model.flow": "bottom_up"}, "75.8, 92.3"),
        part("top_down", {"model.flow": "top_down"}, "75.7, 92.3"),
        replace(part("cascade", {"model.flow": "cascade"}, "75.9, 92.3"), elsewhere=TPN_ELSEWHERE),
        part("parallel", PARALLEL, "76.1, 92.5"),
    ),
    toy_shows="whether each flow beats the backbone; the paper's flows differ by 0.7 points, far less than a toy "
    "can tell apart",
)


def sampling(depth: str, frames: int, stride: int, without: str, with_tpn: str) -> tuple[TableRow, TableRow]:
    name = f"{depth} {frames}x{stride}"
    known = (PLAIN_ELSEWHERE, TPN_ELSEWHERE) if name == "r50 8x8" else ("", "")
    row = TableRow(
        name=name,
        paper=without,
        elsewhere=known[0],
        base=f"k400_{depth}_{frames}x{stride}",
        both=PLAIN,
        toy={"clip.frames": frames, "clip.stride_frames": stride},
        only_full=depth == "r101",
    )
    alpha = {"model.alpha": (frames // 2, frames)}
    return row, replace(row, name=f"{name} + TPN", paper=with_tpn, elsewhere=known[1], both=PARALLEL, full=alpha)


TABLE_6D = Table(
    title="Input frames",
    rows=(
        *sampling("r50", 8, 8, "74.9", "76.1"),
        *sampling("r50", 16, 4, "76.1", "77.3"),
        *sampling("r50", 32, 2, "75.7", "77.7"),
        *sampling("r101", 8, 8, "76.0", "77.2"),
        *sampling("r101", 16, 4, "77.0", "78.1"),
        *sampling("r101", 32, 2, "77.4", "78.9"),
    ),
    toy_shows="the gain at each sampling; the toy has one depth, and so no rows for r101",
)


def alone_and_with(name: str, full: str, clip: Changes, toy_clip: Changes) -> tuple[TableRow, TableRow]:
    large, small = {**clip, "model.backbone": full}, {**toy_clip, "model.backbone": f"{name}_toy"}
    row = TableRow(name=name, both=PLAIN, full=large, toy=small, against=name)
    return row, replace(row, name=f"{name} + TPN", both=PARALLEL, full={**large, "model.alpha": (4, 8)})


DENSE: Changes = {"clip.frames": 32, "clip.stride_frames": 2}
TABLE_BACKBONES = Table(
    title="Backbones without and with the pyramid",
    views="1x1",
    rows=(
        *alone_and_with("i3d", "i3d_r50", DENSE, {}),
        *alone_and_with("slowfast", "slowfast_r50_4x16", DENSE, {}),
        *alone_and_with("r2plus1d", "r2plus1d_r34", DENSE, {}),
        *alone_and_with("ircsn", "ircsn_r50", DENSE, {}),
        *alone_and_with("s3d", "s3d", DENSE, {}),
        *alone_and_with("tsm", "tsm_r50", SEGMENTS, SEGMENTS),
    ),
    toy_shows="what the pyramid adds to each small backbone where only the tempo reveals the class. Backbones that "
    "stride in time lose some of the tempo before the pyramid sees it",
)
"""The claim of the paper's title, for backbones that it does not try."""

FRAMES = TableRow(name="frames", paper="", base="k400_tsn_r50", toy_base="toy_frames", full=PLAIN)
"""A classifier of single frames, which measures tempo."""
TPN = TableRow(name="TPN", paper="", both=PARALLEL, full={"model.alpha": (4, 8)})

FIGURES = {
    "figure1": Table(
        title="Figure 1",
        views="1x1",
        rows=(FRAMES,),
        toy_shows="that classes of synthetic actions differ in how much their tempo varies, as designed",
    ),
    "figure4": Table(
        title="Figure 4",
        views="1x1",
        rows=(FRAMES, BACKBONE, TPN),
        toy_shows="how a gain is plotted against the variance of tempo; color reveals the class: little is left to "
        "gain",
    ),
    "figure5": Table(
        title="Figure 5",
        views="1x1",
        rows=(BACKBONE, TPN),
        toy_shows="how far each network depends on the tempo it was trained at. Where the class is the tempo "
        "(jobs/toy.py without --kind) a video played faster is one of another class, and a network that sees tempo has "
        "to fall; where tempo is only how an action is done (--kind actions) it should not",
    ),
}
"""The networks behind each figure of the paper. `jobs/reproduce.py` trains and analyzes them like jobs/tempo.py."""

TABLES = {
    "2": TABLE_2,
    "3": TABLE_3,
    "4": TABLE_4,
    "5": TABLE_5,
    "6a": TABLE_6A,
    "6b": TABLE_6B,
    "6c": TABLE_6C,
    "6d": TABLE_6D,
    "backbones": TABLE_BACKBONES,
}


def table(name: str) -> Table:
    """Return the table, or the networks of the figure, with the given name."""
    known = {**TABLES, **FIGURES}
    if name not in known:
        raise ConfigError(no_such("table", name, known))
    return known[name]
