"""A reproduced table on the terminal, beside the paper's. Runs on the driver."""

from __future__ import annotations

from rich.table import Table as Grid

from tpn_ray.reproduce.outcome import RowOutcome
from tpn_ray.reproduce.row import Table
from tpn_ray.reproduce.table_runs import Reproduction


def played(stride: int) -> tuple[int, ...]:
    """Return the strides of figure 5: for a network trained at 8, they are 2, 4, ... 16."""
    return tuple(sorted({max(1, stride * quarters // 4) for quarters in range(1, 9)}))


def finished(name: str, top1: dict[str, float]) -> None:
    """Print one line per run."""
    prefixes = [f"{one} " if len(top1) > 1 else "" for one in top1]
    said = ", ".join(f"{prefix}top-1 {top:.1%}" for prefix, top in zip(prefixes, top1.values(), strict=True))
    print(f"{name}  {said}", flush=True)


def trained(name: str, checkpoint: str) -> None:
    """Print one line per network of a figure."""
    print(f"{name}  {checkpoint}", flush=True)


def as_tables(campaign: Reproduction, outcomes: dict[str, list[RowOutcome]]) -> list[Grid]:
    """Return a table per label set: mean and spread over seeds, gain over the baseline with its interval, and the
    paper's numbers."""
    title = campaign.table.title
    return [
        _as_table(campaign.table, rows, title if len(outcomes) == 1 else f"{title}: {name}")
        for name, rows in outcomes.items()
    ]


def _as_table(table: Table, outcomes: list[RowOutcome], title: str) -> Grid:
    grid = Grid("", "top-1", "top-5", "over the baseline", "95 %", "paper", "elsewhere", title=title)
    for row, one in zip(table.rows, outcomes, strict=True):
        low, high = one.gain_interval
        spread = f" ± {one.spread:.1%}" if len(one.top1) > 1 else ""
        gain = ("", "") if table.baseline_of(row) is row else (f"{one.gain:+.1%}", f"{low:+.1%} to {high:+.1%}")
        grid.add_row(row.name, f"{one.mean:.1%}{spread}", f"{one.mean_top5:.1%}", *gain, row.paper, row.elsewhere)
    return grid


def remarks(campaign: Reproduction, outcomes: dict[str, list[RowOutcome]]) -> list[str]:
    """Describe what the numbers mean."""
    videos = len(campaign.manifest.select("val"))
    seeds = f"{campaign.seeds} seed{'s' * (campaign.seeds != 1)}"
    lines = [
        f"{seeds}, {videos} validation videos, last checkpoints; ± is the standard deviation over seeds, the interval "
        "resamples seeds and videos",
    ]
    for name, rows in outcomes.items():
        better = ", ".join(one.name for one in rows if one.is_better) or "none"
        prefix = f"{name}: " if len(outcomes) > 1 else ""
        than = campaign.table.baseline.name if campaign.table.one_baseline else "its baseline"
        lines.append(f"{prefix}better than {than} with every seed and outside the interval: {better}")
    return lines + caveats(campaign)


def caveats(campaign: Reproduction) -> list[str]:
    """Describe what a toy can and cannot show."""
    if campaign.scale != "toy":
        return []
    return [f"this is the toy: synthetic videos, not the paper's data. It shows {campaign.table.toy_shows}."]
