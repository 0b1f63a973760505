"""Plot the regret of searches against the epochs that they spent, as an interactive page and as an image."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import plotly.graph_objects as go
from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.search_replay import Point, taken_after
from dashboards.chart import COLORS, make_chart, set_axes

FIRST: Final = 3
"""Epochs at which the curves begin."""
STEPS: Final = 60
LEAST: Final = 0.1
"""Smallest regret that the logarithmic axis shows, %."""

STYLES: Final = ("solid", "dash", "dot")
"""Line styles for our searches, for Optuna and random search, and for Syne Tune."""
MATPLOTLIB_STYLES: Final = dict(zip(STYLES, ("-", "--", ":"), strict=True))
X: Final = "epochs of all trials"
Y: Final = "regret, %"


@dataclass(frozen=True)
class Curve:
    """Quartiles of the regrets of a search, %, at numbers of epochs."""

    name: str
    style: str
    color: str
    epochs: Sequence[int]
    low: Sequence[float]
    median: Sequence[float]
    high: Sequence[float]

    @property
    def width(self) -> float:
        """Line width; our searches are drawn thicker."""
        return 2.5 if self.style == STYLES[0] else 1.3


def curves(
    histories: Mapping[tuple[str, int], Sequence[Sequence[Point]]], workers: int, best: float, epochs: int
) -> list[Curve]:
    """A curve for each search with ``workers`` workers.

    Parameters
    ----------
    best : error of the table's best configuration, kcal/mol
    epochs : number of epochs at which the curves end
    """
    at = sorted({round(each) for each in np.geomspace(FIRST, epochs, STEPS)})
    colors = {style: itertools.cycle(COLORS) for style in STYLES}
    found = []
    for (name, count), replays in histories.items():
        if count == workers:
            style = _style(name)
            quartiles = [_quartiles([taken_after(each, n) / best - 1 for each in replays]) for n in at]
            low, median, high = ([max(100 * q[i], LEAST) for q in quartiles] for i in range(3))
            found.append(Curve(name, style, next(colors[style]), at, low, median, high))
    return found


def _style(name: str) -> str:
    if name.startswith("anitune"):
        return STYLES[0]
    return STYLES[2] if name.startswith("Syne Tune") else STYLES[1]


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile; no interpolation of the outer two, which may be infinite."""
    ranked = sorted(values)
    return ranked[len(ranked) // 4], statistics.median(ranked), ranked[-1 - len(ranked) // 4]


def _finite(values: Sequence[float]) -> list[float | None]:
    return [value if value < float("inf") else None for value in values]


def draw_interactive(
    histories: Mapping[tuple[str, int], Sequence[Sequence[Point]]], best: float, epochs: int, path: Path
) -> None:
    """Write a page with a figure for each number of workers; the page loads plotly from its CDN."""
    parts = [
        f"<h2>{title}</h2>\n"
        + _figure(curves(histories, workers, best, epochs), title).to_html(
            full_html=False, include_plotlyjs="cdn" if first else False, div_id=f"workers-{workers}"
        )
        for workers, title, first in _panels(histories)
    ]
    page = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Search quality</title></head>',
        '<body style="font-family: system-ui, sans-serif; max-width: 70em; margin: auto">',
        "<h1>Regret of searches against epochs</h1>",
        "<p>Median and quartiles. A click on a name hides a search, a double click shows it alone.</p>",
        *parts,
        "</body></html>\n",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(page))


def _panels(histories: Mapping[tuple[str, int], object]) -> Iterator[tuple[int, str, bool]]:
    counts = sorted({count for _, count in histories})
    for number, count in enumerate(counts):
        yield count, f"{count} worker{'s' if count > 1 else ''}", number == 0


def _figure(shown: Sequence[Curve], title: str) -> go.Figure:
    figure = go.Figure()
    for curve in shown:
        along = [*curve.epochs, *reversed(curve.epochs)]
        band = [(x, y) for x, y in zip(along, [*curve.high, *reversed(curve.low)], strict=True)]
        common = {"legendgroup": curve.name, "hoverinfo": "skip", "showlegend": False, "mode": "lines"}
        figure.add_scatter(
            x=[x for x, y in band if y < float("inf")],
            y=[y for _, y in band if y < float("inf")],
            fill="toself",
            line={"width": 0},
            fillcolor=curve.color,
            opacity=0.12,
            **common,
        )
        figure.add_scatter(
            x=curve.epochs,
            y=_finite(curve.median),
            mode="lines",
            name=curve.name,
            legendgroup=curve.name,
            line={"color": curve.color, "dash": curve.style, "width": curve.width},
            hovertemplate=f"{curve.name}: %{{y:.1f}} % after %{{x}} epochs<extra></extra>",
        )
    set_axes(figure, X, Y, log_x=True, log_y=True)
    chart = make_chart("regret", title, f"{Y} of searches against {X}, {title}", figure)
    return chart.figure.update_layout(height=480, legend={"orientation": "v", "x": 1.02, "y": 1.0})


def draw_static(
    histories: Mapping[tuple[str, int], Sequence[Sequence[Point]]], best: float, epochs: int, path: Path
) -> None:
    """Write an image (SVG) with a panel for each number of workers; equal histories give equal bytes."""
    panels = list(_panels(histories))
    figure = Figure(figsize=(max(8.4, 4.2 * len(panels)), 5.2), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for (workers, title, _), panel in zip(panels, axes, strict=True):
        for curve in curves(histories, workers, best, epochs):
            style = MATPLOTLIB_STYLES[curve.style]
            panel.plot(
                curve.epochs, curve.median, style, color=curve.color, linewidth=curve.width, label=curve.name
            )
            panel.fill_between(
                curve.epochs, curve.low, curve.high, color=curve.color, alpha=0.08, linewidth=0
            )
        panel.set(xscale="log", yscale="log", xlabel=X, title=title)
        panel.grid(alpha=0.25)
    axes[0].set_ylabel(Y)
    lines, names = axes[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": "anitune", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
