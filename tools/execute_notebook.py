"""Runs the code cells of a notebook in place, without Jupyter, and keeps what each comes to.

After ``make run``::

    .venv/bin/python tools/execute_notebook.py docs/notebook.ipynb

Figures are kept as plotly shows them and as pictures, for readers that show no plotly.
"""

from __future__ import annotations

import ast
import base64
import json
import sys
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from dashboards.chart import Chart
from dashboards.drawing import png


def main() -> None:
    """Execute the notebook that the first argument names."""
    path = Path(sys.argv[1])
    notebook = json.loads(path.read_text())
    names: dict[str, Any] = {}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for count, cell in enumerate(cells, start=1):
        value = run("".join(cell["source"]), names)
        cell["execution_count"] = count
        cell["outputs"] = [] if value is None else [output(value, count)]
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def run(code: str, names: dict[str, Any]) -> Any:
    """Run a cell; the value of its last line, if that is an expression."""
    *body, last = ast.parse(code).body
    if not isinstance(last, ast.Expr):
        exec(compile(ast.Module([*body, last], []), "<cell>", "exec"), names)
        return None
    exec(compile(ast.Module(body, []), "<cell>", "exec"), names)
    return eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)


def output(value: Any, count: int) -> dict[str, Any]:
    """A value as a notebook keeps it."""
    if isinstance(value, go.Figure):
        figure = json.loads(value.to_json())
        title = " against ".join(str(value.layout[axis].title.text) for axis in ("yaxis", "xaxis"))
        picture = png(Chart("figure", title, value.layout.meta["alt"], value))
        data = {
            "application/vnd.plotly.v1+json": figure | {"config": {}},
            "image/png": base64.b64encode(picture).decode(),
            "text/plain": [value.layout.meta["alt"]],
        }
    else:
        data = {"text/plain": lines(repr(value))}
        if hasattr(value, "_repr_html_"):
            data["text/html"] = lines(value._repr_html_())
    return {"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": data}


def lines(text: str) -> list[str]:
    """Text as a notebook keeps it: a list of lines with their ends."""
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    main()
