"""A self-contained HTML page with figures and tables. Pure; runs anywhere."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-size: 14px; margin: .6rem 0 }
td, th { padding: .15rem .8rem .15rem 0; text-align: left; border-bottom: 1px solid #ddd }
img { max-width: 100%; display: block; margin: .6rem 0 }
"""


@dataclass
class Page:
    """A page whose parts are shown in the order in which they are added."""

    title: str
    parts: list[str] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """Start a section."""
        self.parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self.parts.append(f"<p>{html.escape(text)}</p>")

    def picture(self, png: bytes, caption: str) -> None:
        """Add a picture, embedded in the file."""
        coded = base64.b64encode(png).decode()
        self.parts.append(f'<img alt="{html.escape(caption, quote=True)}" src="data:image/png;base64,{coded}">')

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Add a table of text cells."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        self.parts.append(f"<table><tr>{head}</tr>{body}</table>")

    def html(self) -> bytes:
        """Return the file's content."""
        title = html.escape(self.title)
        head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        return f"{head}<style>{STYLE}</style></head><body><h1>{title}</h1>{''.join(self.parts)}</body></html>".encode()
