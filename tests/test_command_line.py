"""Flags and names of jobs."""

from __future__ import annotations

import pytest

from tpn_ray import command_line
from tpn_ray.errors import ConfigError


def test_the_recipe_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.take_recipe_name(["toy", "--x", "1"], ["toy"], "p") == ("toy", ["--x", "1"])
    with pytest.raises(ConfigError, match="unknown recipe 'tony'; known: toy"):
        command_line.take_recipe_name(["tony"], ["toy"], "p")
    with pytest.raises(SystemExit):
        command_line.take_recipe_name(["--help"], ["toy"], "p")
    assert "recipes: toy" in capsys.readouterr().out


def test_fresh_names_differ() -> None:
    assert command_line.fresh_name("toy") != command_line.fresh_name("toy")
