"""The notebook of the guide: runs it, and shows it as a page of the documents.

    python docs/notebook.py docs/guide/notebook.ipynb      runs every cell, and keeps what it shows

mkdocs calls `on_page_markdown`, which puts the notebook with its outputs into the page beside it. Cells are plain
Python, so nothing of Jupyter is needed here; what a cell shows is what Jupyter would.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parent / "guide" / "notebook.ipynb"
PAGE = "guide/notebook.md"

Cell = dict[str, Any]


def code_cells(notebook: dict[str, Any]) -> list[Cell]:
    """Return the cells that hold code."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source(cell: Cell) -> str:
    """Return the text of a cell."""
    return "".join(cell["source"])


def run(notebook: dict[str, Any]) -> None:
    """Run the cells of a notebook in a folder of their own, and keep what they show; stop at an error."""
    names: dict[str, Any] = {"__name__": "__main__"}
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for number, cell in enumerate(code_cells(notebook), 1):
                cell["execution_count"] = number
                cell["outputs"] = run_cell(source(cell), names, number, folder)
        finally:
            os.chdir(before)


def run_cell(text: str, names: dict[str, Any], number: int, folder: str) -> list[dict[str, Any]]:
    """Run one cell, and return its outputs: what it prints, and its last expression. Raises what it raises.

    The folder is shown as /home/you, so that running again changes no more than it must.
    """
    tree, printed, shown = ast.parse(text), io.StringIO(), None
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        try:
            exec(compile(tree, f"cell {number}", "exec"), names)
            if isinstance(last, ast.Expr):
                shown = eval(  # noqa: S307 - the project's own notebook
                    compile(ast.Expression(last.value), f"cell {number}", "eval"), names
                )
        except BaseException:
            print(printed.getvalue(), traceback.format_exc(), file=sys.stderr)
            raise
    outputs: list[dict[str, Any]] = []
    if lines := printed.getvalue().replace(os.path.realpath(folder), "/home/you").replace(folder, "/home/you"):
        outputs.append({"output_type": "stream", "name": "stdout", "text": lines.splitlines(keepends=True)})
    if shown is not None:
        data = {"text/plain": repr(shown).splitlines(keepends=True)}
        if hasattr(shown, "_repr_html_"):
            data = {"text/html": shown._repr_html_().replace(folder, "/home/you").splitlines(keepends=True)}
        outputs.append(
            {"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": data},
        )
    return outputs


def as_markdown(notebook: dict[str, Any]) -> str:
    """Return a notebook as Markdown: its texts, its code, and what the code showed."""
    parts = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            parts.append(source(cell))
            continue
        parts.append(f"```python\n{source(cell).rstrip()}\n```")
        for output in cell["outputs"]:
            if output["output_type"] == "stream":
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            elif html := output["data"].get("text/html"):
                parts.append("".join(html))
            else:
                parts.append(f"```text\n{''.join(output['data']['text/plain'])}\n```")
    return "\n\n".join(parts) + "\n"


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Called by mkdocs for every page."""
    if page.file.src_uri != PAGE:
        return markdown
    return markdown + "\n" + as_markdown(json.loads(NOTEBOOK.read_text()))


def main() -> None:
    path = Path(sys.argv[1]).resolve()
    notebook = json.loads(path.read_text())
    run(notebook)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
