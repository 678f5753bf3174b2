"""README and docs as their readers take them: commands parse, names and files exist, links lead somewhere."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import job_flags
from tests.cluster.manifests import ROOT
from tpn_ray.recipes import RECIPES

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

OTHERS = ("ray ", "mlflow ", "pip ", "pytest ", "python -m ")
"""Beginnings of inline code whose flags are other programs'."""
OTHER_FLAGS = {"--working-dir"}


def each(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in FENCE.findall(page.read_text()) if name == language]


def inline_code(page: Path) -> list[str]:
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", FENCE.sub("", page.read_text()))]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every `python jobs/...` command, in blocks and in inline code."""
    lines = "\n".join(blocks(page, "")).replace("\\\n", " ").splitlines()
    for line in [*lines, *inline_code(page)]:
        command = re.search(r"(?:^| -- )(python jobs/.*)", line)
        if command:
            yield shlex.split(command[1], comments=True)


def parse(words: list[str]) -> Any:
    return job_flags.parse(words[0], job_flags.IMAGE_FOLDER + words[1], *words[2:])


def resolve(name: str) -> Any:
    """What a dotted name stands for. Raises ImportError or AttributeError."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(getattr, parts[end:], found)
    raise ImportError(f"no module begins {name}")


def test_the_readme_is_short() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 200
    assert len(text.split()) <= 1200


def test_the_readme_names_recipes_that_exist() -> None:
    named = re.findall(r"^\| `(\w+)` \|", README.read_text(), re.MULTILINE)
    assert {"toy", "k400_r50_8x8", "epic_tsn_r50"} <= set(named) <= RECIPES.keys()


@each([page for page in PAGES if list(commands(page))])
def test_commands_parse(page: Path) -> None:
    for words in commands(page):
        if "--help" not in words:
            parse(words)


def test_a_wrong_flag_is_seen() -> None:
    for command in ("train.py toy --data d --no-such-flag 1", "bench.py decode --no-such-flag 1", "toy.py d --kind no"):
        with pytest.raises(ValueError, match=command.split()[0]):
            parse(["python", *f"jobs/{command}".split()])


@pytest.fixture(scope="module")
def known_flags() -> set[str]:
    """Every flag that some job's help shows."""
    help_of = {path.stem: [path.stem] for path in ROOT.glob("jobs/*.py")}
    help_of |= {job: [f"{job} toy"] for job in ("train", "tune", "plan", "clips")}
    help_of["bench"] = [
        f"bench {what}" for what in ("decode", "views", "ingest", "share", "step", "train", "campaign", "policies")
    ]
    return {flag for texts in help_of.values() for text in texts for flag in flags_in_help(text)}


def flags_in_help(job: str) -> set[str]:
    name, *rest = job.split()
    with pytest.raises(ValueError, match="--help") as shown:
        parse(["python", f"jobs/{name}.py", *rest, "--help"])
    return set(re.findall(r"--[a-z][a-z0-9.-]*", str(shown.value)))


@each(PAGES)
def test_flags_in_prose_exist(page: Path, known_flags: set[str]) -> None:
    for code in inline_code(page):
        if not code.startswith(OTHERS):
            named = set(re.findall(r"(?:^| )(--[a-z][a-z0-9.-]*)", code))
            assert named <= known_flags | OTHER_FLAGS, code


@each(PAGES)
def test_names_of_code_exist(page: Path) -> None:
    generated = re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    for name in [*generated, *inline_code(page)]:
        if re.fullmatch(r"(tpn_ray|jobs)(\.\w+)+", name):
            resolve(name)


@each([page for page in PAGES if blocks(page, "python")])
def test_imports_of_examples_exist(page: Path) -> None:
    trees = [ast.parse(text) for text in blocks(page, "python")]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                resolve(f"{node.module}.{alias.name}")


@each(PAGES)
def test_files_that_are_named_exist(page: Path) -> None:
    for name in inline_code(page):
        if re.fullmatch(r"(tpn_ray|jobs|tests|docs|benchmarks|cluster)/[\w./-]*", name):
            assert (ROOT / name).exists(), name


@each([*PAGES, ROOT / "cluster" / "README.md"])
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if not target.startswith("https://"):
            path = target.partition("#")[0]
            assert not path or (page.parent / path).exists(), target


@each(PAGES)
def test_targets_of_make_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    lines = [line for text in blocks(page, "") for line in text.splitlines()]
    for code in [*lines, *inline_code(page)]:
        if made := re.match(r"make ([a-z-]+)", code):
            assert made[1] in targets, code


def test_figures_of_the_chart_stand_in_the_benchmarks() -> None:
    figures = json.loads((ROOT / "docs" / "figures.json").read_text())
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    for bar in figures["bars"]:
        assert f"{bar['ratio']} ({' to '.join(bar['range'])})" in text
    assert figures["command"] in text
    assert f"{figures['date']}, {figures['commit']}" in text


def test_pictures_are_up_to_date() -> None:
    draw = runpy.run_path(str(ROOT / "docs" / "pictures.py"))
    folder = ROOT / "docs" / "pictures"
    house, journey = draw["rooms"](draw["floors"](draw["imports"]())), draw["stations"](draw["STATIONS"])
    assert (folder / "house.svg").read_bytes() == house, "run python docs/pictures.py house, and look at it"
    assert (folder / "journey.svg").read_bytes() == journey, "run python docs/pictures.py journey, and look at it"
    assert (folder / "demo.webp").stat().st_size < 1_500_000
