"""The budget for bad videos, `--max-bad`: one rule for all jobs. Pure; runs anywhere."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable
from fractions import Fraction

from tpn_ray.errors import BudgetError, ConfigError

MAX_BAD = "1%"
"""Default value of `--max-bad` in every job."""
SHOWN = 5

Bad = tuple[str, str, str]
"""(uri, reason, message) of a video that cannot be used."""


def parse_share(text: str) -> Fraction:
    """Parse a share such as "1%" or "0.01" into an exact fraction, and raise ConfigError for anything else.

    The fraction is exact because 29% of 100 videos is 29, while 0.29 * 100 as floats is less.
    """
    try:
        share = Fraction(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except (ValueError, ZeroDivisionError):
        share = Fraction(-1)
    if not 0 <= share <= 1:
        raise ConfigError(f"--max-bad is {text!r}; write a share such as 1% or 0.01, between 0% and 100%")
    return share


def allowed(max_bad: Fraction, videos: int) -> int:
    """Return how many of `videos` may be bad: `max_bad` of them, rounded down."""
    return math.floor(max_bad * videos)


def check_budget(bad: Collection[object], videos: int, max_bad: Fraction, listed: Iterable[Bad], remedy: str) -> None:
    """Raise BudgetError when more than the share `max_bad` of all `videos` is `bad`.

    The message counts the reasons in `listed` and quotes some of its entries; `listed` is consumed only in that case.
    The last line of the message is `remedy`.
    """
    if len(bad) <= allowed(max_bad, videos):
        return
    listed = list(listed)
    counts = sorted(Counter(reason for _, reason, _ in listed).items())
    examples = "\n  ".join(f"{uri}: {reason}: {message}" for uri, reason, message in listed[:SHOWN])
    raise BudgetError(
        f"{len(bad)} of {videos} videos are bad ({', '.join(f'{count} {reason}' for reason, count in counts)}), the "
        f"budget allows {allowed(max_bad, videos)}; for example\n  {examples}\n"
        f"Repair or remove them, or raise --max-bad (now {float(max_bad) * 100:g}%); {remedy}"
    )
