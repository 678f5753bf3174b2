"""How many bad videos are borne. Pure; runs anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor

from tpn_ray.clips.shards import Bad
from tpn_ray.errors import BudgetError, ConfigError

SHOWN = 5


def parse_share(text: str) -> float:
    """ "1%" or "0.01" as a number from 0 to 1. Raises ConfigError."""
    number, percent = (text[:-1], 0.01) if text.endswith("%") else (text, 1.0)
    try:
        share = float(number) * percent
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"--max-bad is {text!r}; write a share such as 1% or 0.01, between 0% and 100%")
    return share


def check_budget(bad: Mapping[int, Bad], videos: int, max_bad: float) -> None:
    """Raise BudgetError when more than the share `max_bad` of all `videos` is bad."""
    allowed = floor(max_bad * videos + 1e-6)  # 29% of 100 are 29, which 0.29 * 100 is not
    if len(bad) <= allowed:
        return
    counts: dict[str, int] = {}
    for _, _, reason, _ in bad.values():
        counts[reason] = counts.get(reason, 0) + 1
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    examples = "\n  ".join(f"{uri}: {reason}: {message}" for _, uri, reason, message in sorted(bad.values())[:SHOWN])
    raise BudgetError(
        f"{len(bad)} of {videos} videos are bad so far ({reasons}), the budget allows {allowed}; for example\n"
        f"  {examples}\n"
        f"Repair or remove them, or raise --max-bad (now {max_bad:.3g}); finished shards are kept, and the same command"
        " goes on"
    )
