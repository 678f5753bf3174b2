"""The notebook of the guide: what is committed ran, uses the front door only, and can be run again."""

from __future__ import annotations

import ast
import copy
import json
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tpn_ray
from tests.cluster.manifests import ROOT
from tpn_ray import session

SCRIPT = runpy.run_path(str(ROOT / "docs" / "notebook.py"))
NOTEBOOK: dict[str, Any] = json.loads((ROOT / "docs" / "guide" / "notebook.ipynb").read_text())
CELLS: list[dict[str, Any]] = SCRIPT["code_cells"](NOTEBOOK)
TREES = [ast.parse(SCRIPT["source"](cell)) for cell in CELLS]


def test_cells_use_the_front_door_only() -> None:
    nodes = [node for tree in TREES for node in ast.walk(tree)]
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert "tpn_ray" in imported
    assert imported - {"tpn_ray"} <= set(sys.stdlib_module_names)
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    used = {one.attr for one in attributes if isinstance(one.value, ast.Name) and one.value.id == "tpn_ray"}
    assert {"train", "evaluate", "compare", "load"} <= used <= set(tpn_ray.__all__)


def test_every_cell_ran_and_none_failed() -> None:
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    kinds = {output["output_type"] for cell in CELLS for output in cell["outputs"]}
    assert kinds == {"stream", "execute_result"}
    shown = json.dumps(NOTEBOOK)
    assert "<table>" in shown
    assert "data:image/png;base64," in shown
    assert not re.search(r"Traceback|Error:|/tmp/|/root/", shown)
    assert len(shown) < 1_500_000


def test_the_page_shows_all_of_it() -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri=SCRIPT["PAGE"]))
    made = SCRIPT["on_page_markdown"]("# In a notebook\n", page=page, config=None, files=None)
    assert made.count("```python\n") == len(CELLS)
    assert made.count("<table>") >= 4
    other = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    assert SCRIPT["on_page_markdown"]("as it is", page=other, config=None, files=None) == "as it is"


@pytest.mark.long
@pytest.mark.cluster
def test_it_can_be_run_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    again = copy.deepcopy(NOTEBOOK)
    try:
        SCRIPT["run"](again)
    finally:
        session.disconnect()
    for before, now in zip(CELLS, SCRIPT["code_cells"](again), strict=True):
        assert [one["output_type"] for one in before["outputs"]] == [one["output_type"] for one in now["outputs"]]
