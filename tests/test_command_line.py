"""Flags and names of jobs."""

from __future__ import annotations

import pytest

from tpn_ray import command_line
from tpn_ray.errors import ConfigError

KNOWN = {"toy": "Learn the tempo.", "k400_r50_8x8": "Something large."}


def test_the_recipe_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.take_recipe_name(["toy", "--x", "1"], KNOWN, "p") == ("toy", ["--x", "1"])
    with pytest.raises(ConfigError, match=r"unknown recipe 'tony' \(did you mean toy\?\); known: toy, k400_r50_8x8"):
        command_line.take_recipe_name(["tony"], KNOWN, "p")
    with pytest.raises(SystemExit):
        command_line.take_recipe_name(["--help"], KNOWN, "p")
    assert "  toy           Learn the tempo.\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "X", "toy"], "p toy --data X;"),
        (["--data", "my videos", "toy", "--name", "n"], "p toy --data 'my videos' --name n;"),
        (["--data", "toy"], "p RECIPE --data toy;"),
    ],
)
def test_a_recipe_that_comes_later_is_told_its_place(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        command_line.take_recipe_name(words, KNOWN, "p")
    assert f"the name of a recipe comes first: {said}" in str(refused.value)


def test_fresh_names_differ() -> None:
    assert command_line.fresh_name("toy") != command_line.fresh_name("toy")
