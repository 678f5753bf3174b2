"""One rule for the videos that a job bears, whatever the job and however the share is written."""

from __future__ import annotations

from fractions import Fraction

import pytest

from tpn_ray.budget import allowed, check_budget, parse_share
from tpn_ray.errors import BudgetError, ConfigError


def test_a_share_is_exact_in_both_forms() -> None:
    assert [parse_share(text) for text in ("1%", "0.01", "0", "100%", "1", "0.5 %")] == [
        Fraction(1, 100),
        Fraction(1, 100),
        0,
        1,
        1,
        Fraction(1, 200),
    ]
    for percent in range(101):
        for text in (f"{percent}%", f"{percent / 100:.2f}"):
            assert allowed(parse_share(text), 100) == percent, text
    assert allowed(parse_share("0.29"), 99) == 28


@pytest.mark.parametrize("text", ["2", "-1%", "some", "101%", "", "%", "1/0", "nan", "inf"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--max-bad is '{text}'; write a share such as 1% or 0.01"):
        parse_share(text)


def test_the_message_says_what_is_bad_and_what_to_do() -> None:
    bad = [(f"/a/{row}.mp4", "empty" if row else "timeout", "why") for row in range(8)]
    check_budget(bad, 800, parse_share("1%"), bad, "it goes on")
    with pytest.raises(BudgetError) as caught:
        check_budget(bad, 799, parse_share("0.01"), bad, "it goes on")
    message = str(caught.value)
    assert "8 of 799 videos are bad (7 empty, 1 timeout), the budget allows 7" in message
    assert "/a/0.mp4: timeout: why" in message
    assert "/a/5.mp4" not in message, "only some are named"
    assert message.endswith("raise --max-bad (now 1%); it goes on")
