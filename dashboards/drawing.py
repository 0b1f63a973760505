"""Draw our plotly figures as PNG, for places that show nothing interactive.

It understands only the figures of :mod:`dashboards.figures`: points, lines and bars, on linear, logarithmic
and categorical axes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import unescape
from typing import Any, Final

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from dashboards.chart import Chart

_INK: Final = "#2b2f36"
_FAINT: Final = "#d5d9e0"
_RGBA: Final = re.compile(r"rgba\((\d+),(\d+),(\d+),([\d.]+)\)")
_SYMBOLS: Final = {"diamond": "D"}
_DPI: Final = 120
_LONGEST: Final = 80  # characters of a text


def png(chart: Chart) -> bytes:
    """The chart as a picture, 1,080 pixels wide."""
    with rc_context({"text.parse_math": False}):  # a $ in a name begins no formula
        return _png(chart)


def _png(chart: Chart) -> bytes:
    plotted = _unescaped(chart.figure.to_dict())
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    axes = figure.subplots()
    bars = [trace for trace in plotted["data"] if trace["type"] == "bar"]
    for number, trace in enumerate(bars):
        _draw_bars(axes, trace, number, len(bars))
    for trace in plotted["data"]:
        if trace["type"] == "scatter" and trace["x"]:
            _draw_points(axes, trace)
    layout = plotted["layout"]
    _label(axes, layout)
    for note in layout.get("annotations", ()):
        axes.annotate(
            note["text"], (note["x"], note["y"]), fontsize=7, xytext=(3, 0), textcoords="offset points"
        )
    axes.set_title(chart.title, loc="left", fontsize=11, fontweight="bold", color=_INK)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def _unescaped(value: Any) -> Any:
    """The figure with the escaping of :mod:`dashboards.chart` undone and long texts cut."""
    if isinstance(value, str):
        return unescape(value)[:_LONGEST]
    if isinstance(value, dict):
        return {key: _unescaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_unescaped(item) for item in value]
    return value


def _draw_points(axes: Axes, trace: dict[str, Any]) -> None:
    line, marker = trace.get("line", {}), trace.get("marker", {})
    mode = trace.get("mode", "lines")
    x, y = ([float("nan") if value is None else value for value in trace[axis]] for axis in "xy")
    color = _color(line.get("color") or marker.get("color"))
    axes.plot(
        x,
        y,
        color=color,
        alpha=marker.get("opacity", 1.0),
        linestyle="none" if "lines" not in mode else ":" if line.get("dash") == "dot" else "-",
        linewidth=line.get("width", 1.5) * 0.8,
        drawstyle="steps-post" if line.get("shape") == "hv" else "default",
        marker=_SYMBOLS.get(marker.get("symbol", ""), "o") if "markers" in mode else None,
        markersize=marker.get("size", 6) * 0.75,
        markerfacecolor="none" if marker.get("symbol") == "circle-open" else color,
        label=trace.get("name"),
    )


def _draw_bars(axes: Axes, trace: dict[str, Any], number: int, count: int) -> None:
    color = _color(trace.get("marker", {}).get("color"))
    if trace.get("orientation") == "h":
        drawn = axes.barh(trace["y"], trace["x"], color=color, height=0.7, label=trace.get("name"))
        axes.bar_label(drawn, labels=trace.get("text") or None, padding=3, fontsize=8)
        return
    width = 0.8 / count
    places = [i + (number - (count - 1) / 2) * width for i in range(len(trace["x"]))]
    heights = [value or 0.0 for value in trace["y"]]
    axes.bar(places, heights, color=color, width=width, label=trace.get("name"))
    axes.set_xticks(range(len(trace["x"])), trace["x"])


def _label(axes: Axes, layout: dict[str, Any]) -> None:
    for side, axis, options in (("x", axes.xaxis, layout["xaxis"]), ("y", axes.yaxis, layout["yaxis"])):
        if options.get("type") == "log" and axes.has_data():
            (axes.set_xscale if side == "x" else axes.set_yscale)("log")
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
            axis.set_minor_formatter(NullFormatter())
        axis.set_label_text(options.get("title", {}).get("text", ""))
        if (places := options.get("tickvals")) is not None:
            axis.set_ticks(_numbers(places), options["ticktext"])
        if options.get("visible") is False:
            axis.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=_FAINT, linewidth=0.5)
    axes.set_axisbelow(True)


def _numbers(values: Sequence[Any]) -> list[float]:
    return [float(value) for value in values]


def _color(color: str | None) -> Any:
    found = _RGBA.fullmatch(color.replace(" ", "")) if color is not None else None
    if found is None:
        return color
    return (*(int(part) / 255 for part in found.groups()[:3]), float(found[4]))
