"""Display of results in a terminal and in Jupyter: tables with a few lines of text."""

from __future__ import annotations

import io
from html import escape

from rich.table import Table
from rich.text import Text

from dashboards.printable import printable
from search.cli.output import make_console


class Shown:
    """Tables and lines that are displayed as text in a terminal and as HTML in Jupyter.

    Parameters
    ----------
    parts : tables, and lines in the markup of rich
    """

    def __init__(self, *parts: Table | str) -> None:
        self._parts = parts

    def __repr__(self) -> str:
        text = io.StringIO()
        console = make_console(file=text)
        console.width = make_console().width
        for part in self._parts:
            console.print(part, soft_wrap=isinstance(part, str))
        return text.getvalue().rstrip("\n")

    def _repr_html_(self) -> str:
        return "".join(
            f"<div>{_html(part)}</div>" if isinstance(part, str) else _html_table(part)
            for part in self._parts
        )


def _html_table(table: Table) -> str:
    heads = "".join(f"<th>{_html(column.header)}</th>" for column in table.columns)
    rows = zip(*(column.cells for column in table.columns), strict=True)
    lines = []
    for row, look in zip(rows, table.rows, strict=True):
        weight = ' style="font-weight: bold"' if "bold" in str(look.style) else ""
        lines.append(f"<tr{weight}>{''.join(f'<td>{_html(cell)}</td>' for cell in row)}</tr>")
    caption = f"<caption>{_html(table.caption)}</caption>" if table.caption else ""
    return f"<table>{caption}<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _html(markup: object) -> str:
    return escape(printable(Text.from_markup(str(markup)).plain))
