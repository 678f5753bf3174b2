"""A reproduced table on the terminal, beside the paper's. Runs on the driver."""

from __future__ import annotations

from rich.table import Table as Grid

from tpn_ray.reproduce.driver import Campaign
from tpn_ray.reproduce.outcome import Outcome


def finished(name: str, top1: float) -> None:
    """One line for each run."""
    print(f"{name}  top-1 {top1:.1%}", flush=True)


def as_table(campaign: Campaign, outcomes: list[Outcome]) -> Grid:
    """Mean and spread over seeds, gain over the first row with its interval, the paper's figures."""
    grid = Grid("", "top-1", "over the first row", "95 %", "paper", "elsewhere", title=campaign.table.title)
    for row, one in zip(campaign.table.rows, outcomes, strict=True):
        low, high = one.gain_interval
        spread = f" ± {one.spread:.1%}" if len(one.top1) > 1 else ""
        first = row is campaign.table.baseline
        gain = ("", "") if first else (f"{one.gain:+.1%}", f"{low:+.1%} to {high:+.1%}")
        grid.add_row(row.name, f"{one.mean:.1%}{spread}", *gain, row.paper, row.elsewhere)
    return grid


def remarks(campaign: Campaign, outcomes: list[Outcome]) -> list[str]:
    """What the numbers can be taken for."""
    better = [one.name for one in outcomes if one.is_better]
    videos = len(campaign.manifest.select("val"))
    lines = [
        f"{campaign.seeds} seeds, {videos} validation videos, last checkpoints; ± is the standard deviation over "
        "seeds, the interval resamples seeds and videos",
        f"better than {outcomes[0].name} with every seed and outside the interval: {', '.join(better) or 'none'}",
    ]
    if campaign.scale == "toy":
        lines.append(
            "this is the toy: made videos whose class is their tempo, not the paper's data. It shows "
            f"{campaign.table.toy_shows}."
        )
    return lines
