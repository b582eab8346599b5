"""What notebooks show: plain tables, in the colours that the notebook has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table of texts, which are escaped; the first column is on the left, numbers after it on the right."""
    lines = ["<tr>" + "".join(f"<th>{escape(name)}</th>" for name in header) + "</tr>"] if header else []
    for first, *others in rows:
        cells = "".join(f'<td style="text-align:right">{escape(cell)}</td>' for cell in others)
        lines.append(f'<tr><td style="text-align:left">{escape(first)}</td>{cells}</tr>')
    return f"<table>{''.join(lines)}</table>"


def facts(title: str, about: Mapping[str, str]) -> str:
    """A title, and a table of names and values."""
    return f"<b>{escape(title)}</b>{table((), about.items())}"
