"""Figures of a study in a notebook."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go

from dashboards.chart import Chart
from dashboards.drawing import png


class Figure(go.Figure):  # type: ignore[misc]
    """A plotly figure that is interactive where Jupyter supports it, else a picture, else a line of text.

    Plotly's own display of figures needs nbformat in the kernel's environment; this one does not.
    """

    _ipython_display_ = None

    def __init__(self, chart: Chart) -> None:
        super().__init__(chart.figure)
        self._chart = chart

    def __repr__(self) -> str:
        return f"{self._chart.title}. {self._chart.alt}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None, **options: Any) -> dict[str, Any]:
        return {
            "application/vnd.plotly.v1+json": {**json.loads(self.to_json()), "config": {}},
            "image/png": base64.b64encode(png(replace(self._chart, figure=self))).decode(),
            "text/plain": repr(self),
        }

    def _repr_html_(self) -> None:
        """Return None: the MIME bundle already holds everything to display."""
