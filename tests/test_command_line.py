"""Flags and names of jobs."""

from __future__ import annotations

import dataclasses
import shlex

import pytest

from tpn_ray import command_line, recipes
from tpn_ray.commands.train import TrainingJob
from tpn_ray.errors import ConfigError
from tpn_ray.recipe import replace_fields
from tpn_ray.resources import Decoding, PerWorker
from tpn_ray.training.machines import Machines

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


def test_flags_make_the_job_again() -> None:
    """Names that differ from those of the fields, numbers, switches both ways, several values, none, and spaces."""
    default = TrainingJob(data="videos", recipe=recipes.recipe("toy"))
    changes = {"loop.ordered_reduction": True, "optim.nesterov": False, "model.alpha": (4, 8), "optim.lr": 1e-05}
    machines = Machines(
        workers=1,
        per_worker=PerWorker(cpus=0.5, resources=("spot=1",)),
        decoding=Decoding(may_grow=True, on=("pool=cpu", "zone=in(a,b)")),
    )
    job = dataclasses.replace(
        default, data="my videos", machines=machines, recipe=replace_fields(default.recipe, changes), max_bad="5%"
    )
    written = command_line.flags(job, default)
    assert "--cpus-per-worker 0.5" in written
    assert command_line.parse(default, shlex.split(written), program="p", description="") == job
    assert command_line.flags(default, default) == ""
    assert (
        command_line.parse(job, shlex.split(command_line.flags(default, job)), program="p", description="") == default
    )


def test_line_breaks_of_docstrings_do_not_break_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        command_line.parse(
            TrainingJob(data="", recipe=recipes.recipe("toy")), ["--help"], program="p", description="Train."
        )
    said = capsys.readouterr().out
    assert "(below train/ and val/, or split automatically), a CSV uri,label[,split], or a prepared dataset." in said
    assert "for example 1 2 4 8." in said
